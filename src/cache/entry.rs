//! The bytes of a stored response.
