"""Settings -> run directory: training, evaluation, certification, the paper; and their verification."""
