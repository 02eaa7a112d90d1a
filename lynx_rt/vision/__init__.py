"""Images of prompts: opening them safely, and bringing them to the form that a vision tower reads. Needs the extra [vision]: Pillow."""
