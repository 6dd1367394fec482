//! Hard-negative mining from ranked lists.
