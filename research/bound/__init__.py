"""The study of CaRot's bound: do its two ID terms rank the errors under shift?

Oh et al. 2024, section 3: OOD calibration error and OOD classification error share an upper bound
`ε_ID + D/σ_min + …`, made of the ID calibration error and the smallest singular value of the
standardised ID covariance. The bound is numerically loose (σ_min ≤ 1, so the second term is at
least D while errors are at most 1): only ranks are read here. docs/theory.md has the derivation.

Two sources of points: a synthetic experiment (`synthetic_points`) and the reports of finished runs
(`read_runs`). `analyse` computes the rank correlations of either, `write_study` the files.
"""
