"""Bounds: functions (model, x, y, ball) -> (B, K) lower bounds of logit_y - logit_j over the joint ball, scope `sample`."""
