"""What a pipeline's steps mean on the wire: the plan that an item carries, and which output feeds which step."""
