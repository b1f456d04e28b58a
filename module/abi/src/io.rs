// SPDX-License-Identifier: GPL-2.0-only

//! Reads and writes of our own, by dm-io, each with a buffer that is part of it.

use crate::bindings::{self, dm_io_client, dm_io_region, dm_io_request};
use crate::clock::monotonic_ns;
use crate::dm::BlockDevice;
use crate::thread::Wake;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kernel::alloc::flags::{GFP_KERNEL, __GFP_ZERO};
use kernel::bindings as k;
use kernel::prelude::*;
use kernel::sync::Arc;

const SECTOR_SHIFT: usize = 9;
const SYNC: u32 = 1 << k::req_flag_bits___REQ_SYNC;
const FUA: u32 = 1 << k::req_flag_bits___REQ_FUA;
const PREFLUSH: u32 = 1 << k::req_flag_bits___REQ_PREFLUSH;

/// How durable a write is when it has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Written, perhaps only to the device's cache.
    Cached,
    /// This write and every write that ended before it began are on stable media.
    Barrier,
}

/// The pools of dm-io.
///
/// # Invariants
///
/// `raw` is a live client.
pub struct Client {
    raw: NonNull<dm_io_client>,
    retries: AtomicU64,
}

// SAFETY: dm-io clients are used from every thread.
unsafe impl Send for Client {}
// SAFETY: As above.
unsafe impl Sync for Client {}

impl Client {
    /// Creates a client. Sleeps.
    pub fn new() -> Result<Arc<Self>> {
        // SAFETY: No preconditions.
        let raw = kernel::error::from_err_ptr(unsafe { bindings::dm_io_client_create() })?;
        // INVARIANT: Just created.
        let raw = NonNull::new(raw).ok_or(ENOMEM)?;
        Ok(Arc::new(Self { raw, retries: AtomicU64::new(0) }, GFP_KERNEL)?)
    }

    /// How often transfers were tried again.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: Live by the type invariant; each `Transfer` holds a reference to the client and
        // waits for its I/O before it lets go.
        unsafe { bindings::dm_io_client_destroy(self.raw.as_ptr()) };
    }
}

/// A buffer and at most one write, or some reads, of it.
///
/// The device may write to the buffer only while the transfer is in flight, and then it cannot be
/// borrowed: that is what makes this safe.
///
/// # Invariants
///
/// `progress.pending` counts the requests from before their submission until dm-io has called back
/// for them. While it is not 0, no reference to the buffer's content exists, and the buffer stays
/// where it is (the drop waits).
pub struct Transfer {
    client: Arc<Client>,
    buf: VVec<u8>,
    progress: Arc<Progress>,
    /// Something was started whose result nobody has taken.
    started: bool,
    /// What it was, to be tried again.
    last: Option<Last>,
}

/// How often a transfer that failed is tried again.
const RETRIES: u32 = 3;
/// How long after its first failure; four times as long after each further one.
const BACK_OFF_NS: u64 = 10_000_000;
/// Pieces of a transfer.
const PIECES: usize = 16;

#[derive(Clone, Copy)]
struct Last {
    dev: BlockDevice,
    opf: u32,
    pieces: [Piece; PIECES],
    count: usize,
    tried: u32,
    /// When it is tried again, if it has failed.
    again_ns: Option<u64>,
}

/// What the end of a request is told to. Apart from the transfer, which its owner may be changing.
struct Progress {
    wake: Arc<Wake>,
    pending: AtomicU32,
    failed: AtomicBool,
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
    /// Makes an idle transfer with a zeroed buffer of `bytes` bytes. Sleeps.
    pub fn new(client: &Arc<Client>, wake: &Arc<Wake>, bytes: usize) -> Result<KBox<Self>> {
        let mut buf = VVec::with_capacity(bytes, GFP_KERNEL | __GFP_ZERO)?;
        // SAFETY: Room for `bytes` bytes was made, zeroed.
        unsafe { buf.inc_len(bytes) };
        let progress = Progress {
            wake: wake.clone(),
            pending: AtomicU32::new(0),
            failed: AtomicBool::new(false),
        };
        let progress = Arc::new(progress, GFP_KERNEL)?;
        let new = Self { client: client.clone(), buf, progress, started: false, last: None };
        Ok(KBox::new(new, GFP_KERNEL)?)
    }

    /// The buffer, unless the transfer is in flight.
    pub fn buffer(&mut self) -> Option<&mut [u8]> {
        (!self.in_flight()).then_some(&mut self.buf[..])
    }

    /// Whether a transfer is in flight, or will be tried again.
    pub fn in_flight(&self) -> bool {
        self.pending() || self.last.is_some_and(|last| last.again_ns.is_some())
    }

    fn pending(&self) -> bool {
        self.progress.pending.load(Ordering::Acquire) != 0
    }

    /// Takes the result of a transfer that has ended; `None` if none has since the last call.
    ///
    /// One that has failed is tried again a few times, 10, 40 and 160 ms after it failed, and not by itself: the owner must go
    /// on asking, as it does anyway.
    pub fn result(&mut self) -> Option<Result> {
        if !self.started || self.pending() {
            return None;
        }
        if self.progress.failed.load(Ordering::Relaxed) && self.wait_to_retry() {
            return None;
        }
        self.last = None;
        self.started = false;
        Some(if self.progress.failed.load(Ordering::Relaxed) { Err(EIO) } else { Ok(()) })
    }

    /// Tries again what has failed, or waits until it is time to; `false` if it was tried often enough.
    fn wait_to_retry(&mut self) -> bool {
        let Some(last) = self.last.as_mut().filter(|last| last.tried < RETRIES) else {
            return false;
        };
        let now = monotonic_ns();
        let again = last.again_ns.get_or_insert_with(|| {
            now.saturating_add(BACK_OFF_NS.wrapping_shl(last.tried.saturating_mul(2)))
        });
        if now < *again {
            return true;
        }
        last.tried = last.tried.saturating_add(1);
        last.again_ns = None;
        let last = *last;
        self.client.retries.fetch_add(1, Ordering::Relaxed);
        let pieces = last.pieces.into_iter().take(last.count);
        self.start_pieces(&last.dev, pieces, last.opf).is_ok()
    }

    /// Starts to read the pieces, at most 16, into the buffer, one after the other; the owner of the wake is
    /// woken when all have ended.
    pub fn read(&mut self, dev: &BlockDevice, pieces: impl Iterator<Item = Piece>) -> Result {
        self.start(dev, pieces, k::req_op_REQ_OP_READ | SYNC)
    }

    /// Starts to write the first `bytes` bytes of the buffer at `sector`.
    pub fn write(
        &mut self,
        dev: &BlockDevice,
        sector: u64,
        bytes: usize,
        durability: Durability,
    ) -> Result {
        self.start(dev, [Piece { sector, bytes }].into_iter(), write_flags(durability))
    }

    /// Starts to make durable what has ended on the device so far.
    pub fn flush(&mut self, dev: &BlockDevice) -> Result {
        let nothing = [Piece { sector: 0, bytes: 0 }].into_iter();
        self.start(dev, nothing, k::req_op_REQ_OP_WRITE | PREFLUSH)
    }

    /// Reads and waits. Sleeps.
    pub fn read_wait(&mut self, dev: &BlockDevice, sector: u64, bytes: usize) -> Result {
        self.wait_for(dev, Piece { sector, bytes }, k::req_op_REQ_OP_READ | SYNC)
    }

    /// Writes and waits. Sleeps.
    pub fn write_wait(
        &mut self,
        dev: &BlockDevice,
        sector: u64,
        bytes: usize,
        durability: Durability,
    ) -> Result {
        self.wait_for(dev, Piece { sector, bytes }, write_flags(durability))
    }

    /// Starts requests for the pieces; each that is refused at once makes the result a failure.
    ///
    /// Returns `EBUSY` while in flight, `EINVAL` if the buffer is too small for the first piece.
    fn start(
        &mut self,
        dev: &BlockDevice,
        pieces: impl Iterator<Item = Piece>,
        opf: u32,
    ) -> Result {
        if self.in_flight() {
            return Err(EBUSY);
        }
        let mut list = [Piece { sector: 0, bytes: 0 }; PIECES];
        let mut count = 0usize;
        for (place, piece) in list.iter_mut().zip(pieces) {
            *place = piece;
            count = count.saturating_add(1);
        }
        self.last = Some(Last { dev: *dev, opf, pieces: list, count, tried: 0, again_ns: None });
        let pieces = list.into_iter().take(count);
        self.start_pieces(dev, pieces, opf).inspect_err(|_| self.last = None)
    }

    fn start_pieces(
        &mut self,
        dev: &BlockDevice,
        pieces: impl Iterator<Item = Piece>,
        opf: u32,
    ) -> Result {
        self.progress.failed.store(false, Ordering::Relaxed);
        // Ours until all have been submitted, so that the first to end does not pass for the last.
        self.progress.pending.store(1, Ordering::Relaxed);
        let mut offset = 0usize;
        let mut result = Err(EINVAL);
        for piece in pieces {
            let end = offset.saturating_add(piece.bytes);
            if end > self.buf.len() {
                self.progress.failed.store(true, Ordering::Relaxed);
                break;
            }
            // INVARIANT: Counted before it is submitted.
            self.progress.pending.fetch_add(1, Ordering::Relaxed);
            if self.submit(dev, piece, offset, opf, true).is_err() {
                // Refused at once: dm-io does not call back then.
                self.progress.pending.fetch_sub(1, Ordering::Relaxed);
                self.progress.failed.store(true, Ordering::Relaxed);
            }
            result = Ok(());
            offset = end;
        }
        self.started = result.is_ok();
        if self.progress.pending.fetch_sub(1, Ordering::AcqRel) == 1 && self.started {
            // All have ended meanwhile, and left it to us to say so.
            self.progress.wake.wake();
        }
        result
    }

    fn wait_for(&mut self, dev: &BlockDevice, piece: Piece, opf: u32) -> Result {
        if self.in_flight() {
            return Err(EBUSY);
        }
        if piece.bytes > self.buf.len() {
            return Err(EINVAL);
        }
        self.submit(dev, piece, 0, opf, false)
    }

    /// Submits one request for the buffer from `offset` on, which the caller has checked to fit.
    fn submit(
        &mut self,
        dev: &BlockDevice,
        piece: Piece,
        offset: usize,
        opf: u32,
        asynchronous: bool,
    ) -> Result {
        let mut region = dm_io_region {
            bdev: dev.as_raw().cast(),
            sector: piece.sector,
            count: (piece.bytes >> SECTOR_SHIFT) as u64,
        };
        let mut request = dm_io_request { bi_opf: opf, ..Default::default() };
        request.mem.type_ = bindings::dm_io_mem_type_DM_IO_VMA;
        // No reference to the content is made: the device may be writing to another piece of it.
        request.mem.ptr.vma = self.buf.as_mut_ptr().wrapping_add(offset).cast();
        request.client = self.client.raw.as_ptr();
        if asynchronous {
            request.notify.fn_ = Some(notify);
            request.notify.context = Arc::as_ptr(&self.progress).cast_mut().cast();
        }
        let mut errors: usize = 0;
        let mut unsupported: usize = 0;
        // SAFETY: The request and region live for the call; the memory is a vmalloc area that
        // stays until the end of the I/O (type invariant), the device is open, the client lives.
        let r = unsafe {
            bindings::dm_io(&mut request, 1, &mut region, &mut errors, &mut unsupported, 0)
        };
        kernel::error::to_result(r)
    }
}

fn write_flags(durability: Durability) -> u32 {
    k::req_op_REQ_OP_WRITE
        | SYNC
        | match durability {
            Durability::Cached => 0,
            Durability::Barrier => FUA | PREFLUSH,
        }
}

/// # Safety
///
/// Called by dm-io, once for each request, with the context that `Transfer::submit` passed.
unsafe extern "C" fn notify(
    error: kernel::ffi::c_ulong,
    unsupported: kernel::ffi::c_ulong,
    context: *mut kernel::ffi::c_void,
) {
    // SAFETY: `submit` passed it, and the transfer keeps it until `pending` says that this has run.
    let progress = unsafe { &*context.cast::<Progress>() };
    if error != 0 || unsupported != 0 {
        progress.failed.store(true, Ordering::Relaxed);
    }
    // Once nothing is pending, the owner may free all of it: keep the wake alive beyond that.
    let wake = progress.wake.clone();
    if progress.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
        wake.wake();
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        while self.pending() {
            // SAFETY: Drops run in process context and may sleep.
            unsafe { k::schedule_timeout_uninterruptible(1) };
        }
    }
}
