"""The method's open questions, each a study of nano: `study.py` says what one is, `running.py` runs it."""
