// SPDX-License-Identifier: GPL-2.0-only

//! Reads and writes of our own, by dm-io, each with a buffer that is part of it.

use crate::bindings::{self, dm_io_client, dm_io_region, dm_io_request};
use crate::bio::{Status, STS_IOERR, STS_OK};
use crate::dm::BlockDevice;
use crate::thread::Wake;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
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
        Ok(Arc::new(Self { raw: NonNull::new(raw).ok_or(ENOMEM)? }, GFP_KERNEL)?)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: Live by the type invariant; each `Transfer` holds a reference to the client and
        // waits for its I/O before it lets go.
        unsafe { bindings::dm_io_client_destroy(self.raw.as_ptr()) };
    }
}

const IDLE: u32 = 0;
const IN_FLIGHT: u32 = 1;
const ENDED: u32 = 2;
const FAILED: u32 = 3;

/// A buffer and at most one read or write of it.
///
/// The device may write to the buffer only while the transfer is in flight, and then it cannot be
/// borrowed: that is what makes this safe.
///
/// # Invariants
///
/// `state` is `IN_FLIGHT` from the submission until dm-io has called back, and the buffer and the
/// transfer itself stay where they are in that time (it is boxed, and its drop waits).
pub struct Transfer {
    client: Arc<Client>,
    wake: Arc<Wake>,
    buf: VVec<u8>,
    state: AtomicU32,
}

impl Transfer {
    /// Makes an idle transfer with a zeroed buffer of `bytes` bytes. Sleeps.
    pub fn new(client: &Arc<Client>, wake: &Arc<Wake>, bytes: usize) -> Result<KBox<Self>> {
        let mut buf = VVec::with_capacity(bytes, GFP_KERNEL | __GFP_ZERO)?;
        // SAFETY: Room for `bytes` bytes was made, zeroed.
        unsafe { buf.inc_len(bytes) };
        let new =
            Self { client: client.clone(), wake: wake.clone(), buf, state: AtomicU32::new(IDLE) };
        Ok(KBox::new(new, GFP_KERNEL)?)
    }

    /// The buffer, unless the transfer is in flight.
    pub fn buffer(&mut self) -> Option<&mut [u8]> {
        (self.state.load(Ordering::Acquire) != IN_FLIGHT).then_some(&mut self.buf[..])
    }

    /// Whether a transfer is in flight.
    pub fn in_flight(&self) -> bool {
        self.state.load(Ordering::Acquire) == IN_FLIGHT
    }

    /// Takes the result of a transfer that has ended; `None` if none has since the last call.
    pub fn result(&mut self) -> Option<Result> {
        match self.state.load(Ordering::Acquire) {
            ENDED => {
                self.state.store(IDLE, Ordering::Relaxed);
                Some(Ok(()))
            }
            FAILED => {
                self.state.store(IDLE, Ordering::Relaxed);
                Some(Err(EIO))
            }
            _ => None,
        }
    }

    /// Starts to read `bytes` bytes at `sector` into the buffer from `offset` on; the owner of the
    /// wake is woken at the end.
    pub fn read(&mut self, dev: &BlockDevice, sector: u64, offset: usize, bytes: usize) -> Result {
        self.start(dev, sector, offset, bytes, k::req_op_REQ_OP_READ | SYNC, true)
    }

    /// Starts to write `bytes` bytes of the buffer from `offset` on at `sector`.
    pub fn write(
        &mut self,
        dev: &BlockDevice,
        sector: u64,
        offset: usize,
        bytes: usize,
        durability: Durability,
    ) -> Result {
        self.start(dev, sector, offset, bytes, write_flags(durability), true)
    }

    /// Reads and waits. Sleeps.
    pub fn read_wait(&mut self, dev: &BlockDevice, sector: u64, bytes: usize) -> Result {
        self.start(dev, sector, 0, bytes, k::req_op_REQ_OP_READ | SYNC, false)
    }

    /// Writes and waits. Sleeps.
    pub fn write_wait(
        &mut self,
        dev: &BlockDevice,
        sector: u64,
        bytes: usize,
        durability: Durability,
    ) -> Result {
        self.start(dev, sector, 0, bytes, write_flags(durability), false)
    }

    fn start(
        &mut self,
        dev: &BlockDevice,
        sector: u64,
        offset: usize,
        bytes: usize,
        opf: u32,
        asynchronous: bool,
    ) -> Result {
        if self.in_flight() {
            return Err(EBUSY);
        }
        let part =
            self.buf.get_mut(offset..offset.checked_add(bytes).ok_or(EINVAL)?).ok_or(EINVAL)?;
        let mut region = dm_io_region {
            bdev: dev.as_raw().cast(),
            sector,
            count: (bytes >> SECTOR_SHIFT) as u64,
        };
        let mut request = dm_io_request { bi_opf: opf, ..Default::default() };
        request.mem.type_ = bindings::dm_io_mem_type_DM_IO_VMA;
        request.mem.ptr.vma = part.as_mut_ptr().cast();
        request.client = self.client.raw.as_ptr();
        if asynchronous {
            request.notify.fn_ = Some(notify);
            request.notify.context = core::ptr::from_mut(self).cast();
            self.state.store(IN_FLIGHT, Ordering::Release);
        }
        let mut errors: usize = 0;
        let mut unsupported: usize = 0;
        // SAFETY: The request and region live for the call; the memory is a vmalloc area that
        // stays until the end of the I/O (type invariant), the device is open, the client lives.
        let r = unsafe {
            bindings::dm_io(&mut request, 1, &mut region, &mut errors, &mut unsupported, 0)
        };
        if r != 0 && asynchronous {
            // Refused at once: dm-io does not call back then.
            self.state.store(IDLE, Ordering::Relaxed);
        }
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
/// Called by dm-io, once, with the context that `Transfer::start` passed.
unsafe extern "C" fn notify(
    error: kernel::ffi::c_ulong,
    unsupported: kernel::ffi::c_ulong,
    context: *mut kernel::ffi::c_void,
) {
    let status: Status = if error == 0 && unsupported == 0 { STS_OK } else { STS_IOERR };
    // SAFETY: `start` passed the transfer, which stays until its state says that this has run.
    let transfer = unsafe { &*context.cast::<Transfer>() };
    // Once the state changes, the owner may free the transfer: keep the wake alive beyond it.
    let wake = transfer.wake.clone();
    transfer.state.store(if status == STS_OK { ENDED } else { FAILED }, Ordering::Release);
    wake.wake();
}

impl Drop for Transfer {
    fn drop(&mut self) {
        while self.in_flight() {
            // SAFETY: Drops run in process context and may sleep.
            unsafe { k::schedule_timeout_uninterruptible(1) };
        }
    }
}
