//! What only PostgreSQL can do to a store.
