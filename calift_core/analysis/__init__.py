"""What is computed of stored predictions when somebody asks: a file's scores in, numbers out.

The service remembers what it computed and the command reads a file directly; both call these
functions, which know neither. Scores (`SampleScores`) are enough for all of them but the class-wise
error and the calibrators, which pass over the logits of a file in chunks.
"""
