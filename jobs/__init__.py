"""The domain the API and the workers share: settings, tables, state machine, repositories, services, artifact store.

Imports only the torch-free parts of `bgpo`; never `api`, `worker` or torch.
"""
