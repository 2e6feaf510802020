"""Services: a preference oracle over HTTP, and a chat whose policy learns from its users."""
