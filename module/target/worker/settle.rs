// SPDX-License-Identifier: GPL-2.0-only

//! Making durable on the origin what it held at T0.
//!
//! What a snapshot does not preserve it reads from the origin, and the next delta counts on it there. If
//! the origin has a volatile cache, a write that ended before T0 may be in it only, and be lost with the
//! power: the image would change, and the replica have more than the origin. So the origin is flushed
//! between T0 and the seal.

use super::Worker;
use crate::device::add;
use kernel::prelude::*;
use kernel::sync::Arc;
use presnap_abi::io::{Client, Transfer};
use presnap_abi::thread::Wake;
use presnap_engine::freeze::{DropReason, Event};

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The origin holds what it held at the last T0.
    Settled,
    /// It has to be flushed.
    Wanted,
    /// A flush that began after T0 is under way.
    Flushing,
}

/// See the module.
pub(crate) struct OriginFlush {
    transfer: KBox<Transfer>,
    state: State,
}

impl OriginFlush {
    pub(crate) fn new(client: &Arc<Client>, wake: &Arc<Wake>) -> Result<Self> {
        Ok(Self { transfer: Transfer::new(client, wake, 0)?, state: State::Settled })
    }

    pub(crate) fn in_flight(&self) -> bool {
        self.transfer.in_flight()
    }

    /// T0: what has ended until now shall be durable before the seal.
    pub(super) fn want(&mut self, origin_cached: bool) {
        self.state = if origin_cached { State::Wanted } else { State::Settled };
    }

    /// Whether it is.
    pub(super) fn settled(&self) -> bool {
        self.state == State::Settled
    }
}

impl Worker {
    /// Takes the result of a flush, starts the next.
    pub(super) fn flush_origin(&mut self) {
        if let Some(result) = self.origin_flush.transfer.result() {
            self.progress = true;
            // Another T0 may have come meanwhile, and want one of its own.
            if self.origin_flush.state == State::Flushing {
                self.origin_flush.state = State::Settled;
                if result.is_err() && self.snapshot.phase().after_t0() {
                    add(&self.dev.totals.io_errors, 1);
                    self.report(Event::Fail(DropReason::IoError));
                }
            }
        }
        if self.origin_flush.state == State::Wanted && !self.origin_flush.in_flight() {
            self.progress = true;
            self.origin_flush.state = State::Flushing;
            if self.origin_flush.transfer.flush(&self.dev.origin).is_err() {
                self.origin_flush.state = State::Settled;
                self.report(Event::Fail(DropReason::IoError));
            }
        }
    }
}
