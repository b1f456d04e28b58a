// SPDX-License-Identifier: GPL-2.0-only

//! Reads and writes of our own, each with a buffer that is part of it.

use crate::dm::BlockDevice;
use crate::thread::Wake;
use kernel::prelude::*;
use kernel::sync::Arc;
use presnap_machine::blocks::{Content, SECTOR};
use presnap_machine::disk::{Op, Outcome, Request};
use presnap_machine::{note, Machine};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// How durable a write is when it has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Written, perhaps only to the device's cache.
    Cached,
    /// This write and every write that ended before it began are on stable media.
    Barrier,
}

/// What transfers share.
pub struct Client;

impl Client {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// None.
    pub fn new() -> Result<Arc<Self>> {
        Arc::new(Self, GFP_KERNEL)
    }

    /// How often transfers were tried again: what fails here has been, in vain.
    pub fn retries(&self) -> u64 {
        0
    }
}

/// A buffer and at most one write, or some reads, of it.
pub struct Transfer {
    /// Made when it is first needed: most transfers of a device never are.
    buf: Vec<u8>,
    len: usize,
    progress: Rc<Progress>,
    /// Something was started whose result nobody has taken.
    started: bool,
}

struct Progress {
    wake: Arc<Wake>,
    pending: Cell<u32>,
    failed: Cell<bool>,
    /// What reads have brought, and where it belongs.
    arrived: RefCell<Vec<(usize, Vec<u8>)>>,
}

impl Progress {
    fn ended(&self, offset: usize, outcome: Outcome) {
        match outcome {
            Ok(data) if !data.is_empty() => self.arrived.borrow_mut().push((offset, data)),
            Ok(_) => {}
            Err(_) => self.failed.set(true),
        }
        self.pending.set(self.pending.get() - 1);
        if self.pending.get() == 0 {
            self.wake.wake();
        }
    }
}

/// A piece of a transfer: so many bytes at a sector of a device.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// The first sector.
    pub sector: u64,
    /// Bytes, whole sectors.
    pub bytes: usize,
}

impl Transfer {
    /// Makes an idle transfer with a zeroed buffer of `bytes` bytes.
    ///
    /// # Errors
    ///
    /// None.
    pub fn new(_client: &Arc<Client>, wake: &Arc<Wake>, bytes: usize) -> Result<KBox<Self>> {
        let progress = Progress {
            wake: wake.clone(),
            pending: Cell::new(0),
            failed: Cell::new(false),
            arrived: RefCell::default(),
        };
        let new = Self { buf: Vec::new(), len: bytes, progress: Rc::new(progress), started: false };
        Ok(KBox::new(new, GFP_KERNEL)?)
    }

    fn filled(&mut self) -> &mut [u8] {
        if self.buf.is_empty() {
            self.buf = vec![0; self.len];
        }
        for (offset, data) in self.progress.arrived.take() {
            self.buf[offset..offset + data.len()].copy_from_slice(&data);
        }
        &mut self.buf
    }

    /// The buffer, unless the transfer is in flight.
    pub fn buffer(&mut self) -> Option<&mut [u8]> {
        if self.in_flight() {
            None
        } else {
            Some(self.filled())
        }
    }

    /// Whether a transfer is in flight.
    pub fn in_flight(&self) -> bool {
        self.progress.pending.get() != 0
    }

    /// Takes the result of a transfer that has ended; `None` if none has since the last call.
    pub fn result(&mut self) -> Option<Result> {
        Machine::current().preempt();
        if !self.started || self.in_flight() {
            return None;
        }
        self.started = false;
        Some(if self.progress.failed.get() { Err(EIO) } else { Ok(()) })
    }

    /// Starts to read the pieces into the buffer, one after the other.
    ///
    /// # Errors
    ///
    /// `EBUSY` while in flight, `EINVAL` if the buffer is too small for the first piece.
    pub fn read(&mut self, dev: &BlockDevice, pieces: impl Iterator<Item = Piece>) -> Result {
        self.start(dev, pieces, None)
    }

    /// Starts to write the first `bytes` bytes of the buffer at `sector`.
    ///
    /// # Errors
    ///
    /// As [`Transfer::read`].
    pub fn write(
        &mut self,
        dev: &BlockDevice,
        sector: u64,
        bytes: usize,
        durability: Durability,
    ) -> Result {
        self.start(dev, [Piece { sector, bytes }].into_iter(), Some(durability))
    }

    /// Starts to make durable what has ended on the device so far.
    ///
    /// # Errors
    ///
    /// As [`Transfer::read`].
    pub fn flush(&mut self, dev: &BlockDevice) -> Result {
        if self.in_flight() {
            return Err(EBUSY);
        }
        note!("{} flush", dev.number());
        self.progress.failed.set(false);
        self.progress.pending.set(1);
        self.started = true;
        let progress = self.progress.clone();
        let request = Request {
            op: Op::Flush,
            sector: 0,
            sectors: 0,
            preflush: false,
            fua: false,
            done: Box::new(move |outcome| progress.ended(0, outcome)),
        };
        Machine::current().submit(dev.disk(), request);
        Ok(())
    }

    /// Reads and waits.
    ///
    /// # Errors
    ///
    /// As [`Transfer::read`], and `EIO`.
    pub fn read_wait(&mut self, dev: &BlockDevice, sector: u64, bytes: usize) -> Result {
        self.read(dev, [Piece { sector, bytes }].into_iter())?;
        self.wait()
    }

    /// Writes and waits.
    ///
    /// # Errors
    ///
    /// As [`Transfer::write`], and `EIO`.
    pub fn write_wait(
        &mut self,
        dev: &BlockDevice,
        sector: u64,
        bytes: usize,
        durability: Durability,
    ) -> Result {
        self.write(dev, sector, bytes, durability)?;
        self.wait()
    }

    fn wait(&mut self) -> Result {
        Machine::current().wait_for(|| !self.in_flight());
        self.result().unwrap_or(Err(EIO))
    }

    fn start(
        &mut self,
        dev: &BlockDevice,
        pieces: impl Iterator<Item = Piece>,
        write: Option<Durability>,
    ) -> Result {
        if self.in_flight() {
            return Err(EBUSY);
        }
        let machine = Machine::current();
        self.filled();
        self.progress.failed.set(false);
        // Ours until all have been submitted, so that the first to end does not pass for the last.
        self.progress.pending.set(1);
        let mut offset = 0;
        let mut result = Err(EINVAL);
        for piece in pieces {
            let end = offset + piece.bytes;
            if end > self.buf.len() {
                self.progress.failed.set(true);
                break;
            }
            self.progress.pending.set(self.progress.pending.get() + 1);
            let barrier = write == Some(Durability::Barrier);
            let op = match write {
                None => Op::Read,
                Some(_) if piece.bytes == 0 => Op::Flush,
                Some(_) => Op::Write(Content::new(piece.sector, &self.buf[offset..end])),
            };
            note!("{} {} +{} {write:?}", dev.number(), piece.sector, piece.bytes / SECTOR);
            let progress = self.progress.clone();
            let request = Request {
                op,
                sector: piece.sector,
                sectors: (piece.bytes / SECTOR) as u64,
                preflush: barrier && piece.bytes > 0,
                fua: barrier && piece.bytes > 0,
                done: Box::new(move |outcome| progress.ended(offset, outcome)),
            };
            machine.submit(dev.disk(), request);
            result = Ok(());
            offset = end;
        }
        self.started = result.is_ok();
        self.progress.pending.set(self.progress.pending.get() - 1);
        if self.progress.pending.get() == 0 && self.started {
            self.progress.wake.wake();
        }
        machine.preempt();
        result
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if self.in_flight() && !std::thread::panicking() {
            Machine::current().wait_for(|| !self.in_flight());
        }
    }
}
