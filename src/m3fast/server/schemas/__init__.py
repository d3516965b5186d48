"""Bodies of requests and responses, for checking and for the OpenAPI document."""
