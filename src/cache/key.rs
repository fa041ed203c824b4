//! What a response is stored under.
