"""The HTTP server: one engine behind the APIs of OpenAI, TEI and Cohere, and its own."""
