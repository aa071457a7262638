"""What the REST API takes and gives. The server, the typed client and the dashboard share these.

All under `/api/v1`, JSON, `Authorization: Bearer TOKEN`; every error is `application/problem+json`.
The operations are in `backend/routes`; a service describes them at `/docs`.
"""
