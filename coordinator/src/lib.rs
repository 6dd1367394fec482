//! What a Retort coordinator does: it accepts jobs, plans their tasks, deals them to workers and remembers.
//!
//! - [`scheduler`]: the pure state machine; it never reads a clock
//! - [`journal`]: the create-only log of durable facts in object storage
//! - [`driver`]: the one task that owns the state
//! - [`logs`]: the newest log records of every job, in memory
//! - [`grpc`]: decode, send an input, encode
//! - [`run`](run()): all of it as a process

pub mod scheduler;
