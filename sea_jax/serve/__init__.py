"""Services for other programs: the preference oracle over HTTP."""
