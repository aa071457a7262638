"""What the REST API takes and gives. The server, the typed client and the dashboard share these.

All under `/api/v1`, JSON, `Authorization: Bearer TOKEN`; every error is `application/problem+json`.

===========  ========================================  =======================================
method       path                                      takes → gives
===========  ========================================  =======================================
GET          /health                                   → Health (open): the process lives
GET          /readyz                                   → Ready (open); 503 says what is missing
GET          /stats                                    → Stats
POST         /runs                                     RunSubmit → 202 RunDetail, Location
POST         /runs/validate                            RunSubmit → Validation
GET          /runs                                     filters → RunPage
GET          /runs/{id}                                → RunDetail
PATCH        /runs/{id}                                RunPatch → RunDetail
DELETE       /runs/{id}                                → 204 (refused with 409 while it works)
POST         /runs/{id}/cancel                         → 202 RunDetail (repeatable)
POST         /runs/{id}/retry                          → 202 RunDetail (same run, queued again)
POST         /runs/{id}/clone                          RunClone → 202 RunDetail (a new run)
GET          /runs/{id}/metrics                        names, since_step, max_points → Metrics
GET          /runs/{id}/events                         SSE of RunEvent; Last-Event-ID resumes
GET          /runs/{id}/checkpoints                    → list[Artifact]
GET          /runs/{id}/artifacts                      → list[Artifact]
GET          /runs/{id}/artifacts/{name:path}          → the file
GET          /runs/{id}/logs                           offset, limit, tail → LogPage
GET          /runs/{id}/evaluations                    → list[Evaluation]
GET          /runs/{id}/spectra                        → list[Spectrum]
GET          /runs/{id}/report                         → Report
GET          /runs/{id}/frontier                       → Frontier (404: the run measured none)
GET          /evaluations                              run_id, dataset, role → EvaluationPage
POST         /evaluations                              EvaluationSubmit → 202 EvaluationJob,
                                                       Location
POST         /evaluations/validate                     EvaluationSubmit → Validation
GET          /evaluation-jobs                          run_id, phase → EvaluationJobPage
GET          /evaluation-jobs/{id}                     → EvaluationJob
DELETE       /evaluation-jobs/{id}                     → 204 (its results stay)
POST         /evaluation-jobs/{id}/cancel, /retry      → 202 EvaluationJob
GET          /evaluation-jobs/{id}/evaluations         → EvaluationPage: its results so far
GET          /evaluation-jobs/{id}/events, /logs       as for runs
GET          /evaluations/{id}                         → Evaluation
GET          /evaluations/{id}/reliability             n_bins, calibrator … → Reliability
GET          /evaluations/{id}/metrics                 n_bins, scheme, norm … → MeasureSet
GET          /evaluations/{id}/audit                   temperature → MeasureSet
GET          /evaluations/{id}/slices                  by, where, sort … → SlicePage
GET          /evaluations/{id}/samples                 where, bin, against … → SamplePage
GET          /evaluations/{id}/samples/traits          where, bin … → SampleTraits
GET          /samples/{evaluation}/{id}/thumbnail      size → the image
GET          /runs/{id}/images/{id}/thumbnail          dataset, size → the image
GET          /evaluations/{id}/calibrators             kind, fit_on, oracle → CalibratorEffect
GET          /evaluations/{id}/budget                  difference, metric → Budget
GET          /runs/{id}/slices                         where, role … → SlicePage
GET          /runs/{id}/calibrators/transfer           kind, dataset → TransferMatrix
GET          /evaluations/{id}/predictions             → the Parquet file
POST         /predictions                              Parquet; name, dataset … → 201 RunDetail
GET          /compare                                  run_id …, baseline → Comparison
GET          /methods                                  → list[MethodInfo]
GET          /models                                   → list[ModelInfo]
GET          /datasets                                 → list[DatasetInfo]
GET          /suites                                   phase → list[SuiteRuns], newest run first
GET          /workers                                  → list[WorkerInfo]
===========  ========================================  =======================================
"""
