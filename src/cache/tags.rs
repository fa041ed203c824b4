//! Labels by which responses are invalidated.
