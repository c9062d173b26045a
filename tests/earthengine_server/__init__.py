"""A server that speaks Earth Engine on the loopback, over the simulated world.

It evaluates the expressions that the real client sends, function by function, as documented, and
shares no code with the project's reducers: what comes back through it is an independent computation.

    with serve() as server:  # or, in a process of its own: python -m tests.earthengine_server
        ee.Initialize(AnonymousCredentials(), project="any", url=server.url)

- `values`, `functions`, `graph`: what expressions are made of, the table of functions, evaluation.
- `images`, `arithmetic`, `reducers`, `elements`, `filters`, `scalars`: the functions.
- `catalogue`: the data sets. `answers`: pixels and values within the service's limits.
- `service`, `faults`, `sign_in`, `http`: quota, book, injected faults, tokens, endpoints.
"""

from tests.earthengine_server.answers import Limits
from tests.earthengine_server.catalogue import Catalogue
from tests.earthengine_server.faults import Fault
from tests.earthengine_server.http import Serving, serve

__all__ = ["Catalogue", "Fault", "Limits", "Serving", "serve"]
