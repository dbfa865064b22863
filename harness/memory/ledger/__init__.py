"""Pure arithmetic: an allocation log and records of roles, joined into bytes by role at every instant."""
