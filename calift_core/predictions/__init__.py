"""Stored per-sample predictions: logits once, every metric from them.

One Parquet file per model and data set, readable by any Parquet reader. Columns, in stored order of
the samples: `id` (string, unique), `label` (int32), `logits` (fixed-size list of C float32) and,
where samples share a source, `cluster` (string). The schema metadata holds one JSON object under
the key `calift`, the fields of `PredictionsMetadata`. Pages carry checksums and are verified.

Format 2 has a second storage, `top_k`, for sets whose N · C logits would be too many: `classes` and
`logits` (fixed-size lists of k int32 and k float32) hold the k largest logits, the largest first,
and `label_logit` (float32), `label_rank` (int32), `log_sum_exp` and `sum_squares` (float64) what
the scores of a sample need of all C. It is read by `read_top_k`, and by `read_scores` and
`read_index` like any other. Files of format 1 are read too.
"""
