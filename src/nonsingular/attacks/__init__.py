"""Attacks: functions (model, x, y, ball, *, ...) -> Perturbation, one method a file."""
