// SPDX-License-Identifier: GPL-2.0-only

//! The engine of presnap: everything that can be decided without a kernel.
//!
//! Formats, prediction, policy and the state machines of a snapshot live here, once, and are
//! compiled both into `dm-presnap.ko` and into userspace. Nothing in this crate does I/O, allocates
//! or uses floating point; storage is handed in by the caller as slices (`Deref<Target = [T]>`).

#![cfg_attr(not(any(MODULE, test)), no_std)]
#![forbid(unsafe_code)]

pub mod accounting;
pub mod activity;
pub mod bitmap;
pub mod chunker;
pub mod crc32c;
pub mod features;
pub mod fixed;
pub mod freeze;
pub mod geometry;
pub mod inflight;
pub mod intent;
pub mod knob;
pub mod manifest;
pub mod message;
pub mod model;
pub mod pacer;
pub mod policy;
pub mod predictor;
pub mod rank;
pub mod record;
pub mod region;
pub mod replication;
pub mod ring;
pub mod slots;
pub mod stream;
pub mod table;
pub mod throttle;
pub mod trace;
pub mod trigger;
