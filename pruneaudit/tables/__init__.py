"""Tables that were published: read, and audited for what contradicts itself."""
