//! Types generated from `proto/retort/v1`. They stay inside gRPC adapters and [`crate::client`].

#![allow(missing_docs, clippy::all)]

tonic::include_proto!("retort.v1");
