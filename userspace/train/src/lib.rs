// SPDX-License-Identifier: GPL-2.0-only

//! Trains the models of presnap: from recorded I/O to a blob of weights for the kernel.
//!
//! The trace is replayed through the engine's own [`presnap_engine::predictor::Predictor`], so that
//! the features are those of the kernel to the bit. At random instants, areas are sampled with a
//! horizon and the answer to "was it written within?". A network is trained on the first part of
//! the trace, quantised to int8, written by the engine's encoder, read by the engine's verifier, and
//! judged on the last part against the heuristics that need no training.
//!
//! The same data and seed give the same files, byte for byte. [`cli`] is the command.

pub mod card;
pub mod cli;
pub mod metrics;
pub mod network;
pub mod progress;
pub mod quantise;
pub mod random;
pub mod report;
pub mod samples;
pub mod source;
