"""A local page on which one draws, and each loaded network answers: `choose` finds the checkpoints, `network` answers,
`samples` reads the dataset, `application` is the HTTP interface, `guard` and `server` protect it, `page/` is the page.

The page gets its answers from one object, `source`, in page/source.js: the rest of it knows no server.
"""
