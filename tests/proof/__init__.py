"""A programme that tries to break what a store promises, for any engine.

An engine is described by one file in `engines`, as a `Subject`. The programmes in `programs`
put every subject through power cuts, failing calls, damage, kills and more. `mutants` holds
bugs that are planted one at a time, to see that the programmes notice.
"""
