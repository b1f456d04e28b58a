// SPDX-License-Identifier: GPL-2.0-only

//! Bios that device-mapper handed to a target: owned one by one, kept in intrusive lists.

use crate::{bindings, dm::BlockDevice};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use kernel::bindings as k;
use kernel::prelude::*;
use kernel::types::Opaque;

/// A block status, as the block layer counts them; 0 is success.
pub type Status = u8;

/// Success.
pub const STS_OK: Status = 0;
/// Out of space (`BLK_STS_NOSPC`).
pub const STS_NOSPC: Status = 3;
/// It took too long (`BLK_STS_TIMEOUT`).
pub const STS_TIMEOUT: Status = 2;
/// I/O error (`BLK_STS_IOERR`).
pub const STS_IOERR: Status = 10;

/// What a bio asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read data.
    Read,
    /// Write data.
    Write,
    /// An empty flush.
    Flush,
    /// Discard, secure or not.
    Discard,
    /// Write zeroes.
    WriteZeroes,
    /// Something that a target that does not announce zones never gets.
    Other,
}

/// A bio that the holder must end, submit or pass on.
///
/// Dropping it ends it with an I/O error, so that no path can lose one.
///
/// # Invariants
///
/// The pointer is a live bio cloned by device-mapper for our target, and this is its only owner:
/// nobody else ends or submits it while this exists.
#[repr(transparent)]
pub struct Bio(NonNull<k::bio>);

// SAFETY: A bio may be handled by any thread, one at a time.
unsafe impl Send for Bio {}

/// Plain values that may live in the per-bio data of device-mapper.
///
/// # Safety
///
/// An implementer must be valid for every bit pattern, need no drop, and be aligned to at most 8.
pub unsafe trait PerBio: Copy + 'static {}

// SAFETY: Integers.
unsafe impl PerBio for [u64; 4] {}

impl Bio {
    /// # Safety
    ///
    /// `bio` must be a live bio that the caller owns in the sense of the invariant.
    pub(crate) unsafe fn from_raw(bio: NonNull<k::bio>) -> Self {
        // INVARIANT: Promised by the caller.
        Self(bio)
    }

    pub(crate) fn into_raw(self) -> NonNull<k::bio> {
        let raw = self.0;
        core::mem::forget(self);
        raw
    }

    fn raw(&self) -> *mut k::bio {
        self.0.as_ptr()
    }

    fn opf(&self) -> u32 {
        // SAFETY: A live bio by the type invariant; the field does not change while we own it.
        unsafe { (*self.raw()).bi_opf }
    }

    /// What it asks for. A write with data and a preflush does not occur: device-mapper splits it.
    pub fn op(&self) -> Op {
        match self.opf() & 0xff {
            k::req_op_REQ_OP_READ => Op::Read,
            k::req_op_REQ_OP_WRITE if self.sectors() == 0 => Op::Flush,
            k::req_op_REQ_OP_WRITE => Op::Write,
            k::req_op_REQ_OP_FLUSH => Op::Flush,
            k::req_op_REQ_OP_DISCARD | k::req_op_REQ_OP_SECURE_ERASE => Op::Discard,
            k::req_op_REQ_OP_WRITE_ZEROES => Op::WriteZeroes,
            _ => Op::Other,
        }
    }

    /// First sector on the device it is aimed at now.
    pub fn sector(&self) -> u64 {
        // SAFETY: A live bio by the type invariant.
        unsafe { (*self.raw()).bi_iter.bi_sector }
    }

    /// Length in sectors.
    pub fn sectors(&self) -> u32 {
        // SAFETY: A live bio by the type invariant.
        unsafe { (*self.raw()).bi_iter.bi_size >> 9 }
    }

    /// Aims it at `sector` of `dev`.
    pub fn remap(&mut self, dev: &BlockDevice, sector: u64) {
        // SAFETY: A live bio that we own; `dev` is open by its invariant.
        unsafe { bindings::presnap_bio_set_dev(self.raw(), dev.as_raw()) };
        // SAFETY: As above; nobody else looks at the iterator while we own the bio.
        unsafe { (*self.raw()).bi_iter.bi_sector = sector };
    }

    /// Keeps only the first `sectors` sectors (at least 1, at most [`Bio::sectors`]);
    /// device-mapper sends the rest as a bio of its own. Only within `map`.
    pub(crate) fn accept_partial(&mut self, sectors: u32) {
        if sectors == 0 || sectors >= self.sectors() {
            return;
        }
        // SAFETY: A clone in its `map` call (promised by the caller), not a flush (its length is
        // zero), not atomic (the target type does not announce atomic writes), and `sectors` is
        // less than its length.
        unsafe { bindings::dm_accept_partial_bio(self.raw(), sectors) };
    }

    /// Ends it with `status`.
    pub fn end(self, status: Status) {
        let raw = self.into_raw();
        // SAFETY: We owned the bio and give it up; it is ended once.
        unsafe { bindings::presnap_bio_endio(raw.as_ptr(), status) };
    }

    /// Submits it to the device it is aimed at, from a thread that may wait for a free request.
    pub fn submit(self) {
        let raw = self.into_raw();
        // SAFETY: We own the bio until it is submitted. Its submitter did not want to wait; this
        // thread may, and an error would come too late for the submitter to try again.
        unsafe { (*raw.as_ptr()).bi_opf &= !(1 << k::req_flag_bits___REQ_NOWAIT) };
        // SAFETY: We owned the bio and give it up; it is aimed at an open device.
        unsafe { k::submit_bio_noacct(raw.as_ptr()) };
    }

    pub(crate) fn header<D: PerBio>(&self) -> *mut Header {
        // SAFETY: A clone of our target by the type invariant; device-mapper reserves this many
        // bytes in front of each, as the target's constructor asked.
        unsafe { bindings::dm_per_bio_data(self.raw(), per_bio_size::<D>()) }.cast()
    }

    fn per_bio<D: PerBio>(&self) -> *mut D {
        // SAFETY: The target's data follows the header in the reserved memory.
        unsafe { self.header::<D>().add(1).cast() }
    }

    /// Reads its per-bio data; meaningless until the first [`Bio::store`].
    pub fn load<D: PerBio>(&self) -> D {
        // SAFETY: Reserved and aligned memory; any bits are a valid `D`, and zero or stale bits
        // are what device-mapper leaves there.
        unsafe { self.per_bio::<D>().read() }
    }

    /// Writes its per-bio data.
    pub fn store<D: PerBio>(&mut self, data: D) {
        // SAFETY: Reserved and aligned memory that only the owner of the bio touches.
        unsafe { self.per_bio::<D>().write(data) };
    }
}

impl Drop for Bio {
    fn drop(&mut self) {
        // SAFETY: We own the bio; the handle ends here, so it is ended once.
        unsafe { bindings::presnap_bio_endio(self.raw(), STS_IOERR) };
    }
}

/// A first-in, first-out list of bios, linked through the bios themselves: never allocates.
///
/// # Invariants
///
/// `head` to `tail` is a chain by `bi_next` of bios that the list owns; both are null when empty.
pub struct BioList {
    head: *mut k::bio,
    tail: *mut k::bio,
    len: usize,
}

// SAFETY: The list owns its bios, and bios may move between threads.
unsafe impl Send for BioList {}

impl Default for BioList {
    fn default() -> Self {
        Self::new()
    }
}

impl BioList {
    /// An empty list.
    pub const fn new() -> Self {
        Self { head: core::ptr::null_mut(), tail: core::ptr::null_mut(), len: 0 }
    }

    /// Number of bios.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// Adds a bio at the end.
    pub fn push(&mut self, bio: Bio) {
        let raw = bio.into_raw().as_ptr();
        // SAFETY: The bio is ours now; `bi_next` is free for the owner of an unsubmitted bio.
        unsafe { (*raw).bi_next = core::ptr::null_mut() };
        if self.tail.is_null() {
            self.head = raw;
        } else {
            // SAFETY: `tail` is owned by the list by the invariant.
            unsafe { (*self.tail).bi_next = raw };
        }
        self.tail = raw;
        self.len = self.len.wrapping_add(1);
    }

    /// Takes the first bio.
    pub fn pop(&mut self) -> Option<Bio> {
        let raw = NonNull::new(self.head)?;
        // SAFETY: `head` is owned by the list by the invariant.
        self.head = unsafe { (*raw.as_ptr()).bi_next };
        if self.head.is_null() {
            self.tail = core::ptr::null_mut();
        }
        self.len = self.len.wrapping_sub(1);
        // SAFETY: As above.
        unsafe { (*raw.as_ptr()).bi_next = core::ptr::null_mut() };
        // SAFETY: The list owned the bio and hands it over.
        Some(unsafe { Bio::from_raw(raw) })
    }

    /// Takes all bios.
    pub fn take(&mut self) -> Self {
        core::mem::take(self)
    }

    /// Moves all bios of `other` to the end.
    pub fn append(&mut self, other: &mut Self) {
        while let Some(bio) = other.pop() {
            self.push(bio);
        }
    }
}

impl Drop for BioList {
    fn drop(&mut self) {
        while let Some(bio) = self.pop() {
            drop(bio);
        }
    }
}

/// What the abi keeps in front of the target's per-bio data.
///
/// `pending` counts the ends that are still to come of a mirrored bio: its own and its mirror's.
#[repr(C)]
pub(crate) struct Header {
    pending: AtomicU32,
    mirror_status: AtomicU32,
    own_status: AtomicU32,
    spare: u32,
}

/// The mirror's status as long as there is no mirror.
const NO_MIRROR: u32 = u32::MAX;

/// Bytes of per-bio data that device-mapper must reserve for a target with data `D`.
pub(crate) const fn per_bio_size<D: PerBio>() -> usize {
    core::mem::size_of::<Header>() + core::mem::size_of::<D>()
}

impl Header {
    /// Prepares the header of a bio that enters `map`.
    ///
    /// # Safety
    ///
    /// `header` must be the per-bio memory of a bio that the caller owns.
    pub(crate) unsafe fn init(header: *mut Self) {
        let fresh = Self {
            pending: AtomicU32::new(0),
            mirror_status: AtomicU32::new(NO_MIRROR),
            own_status: AtomicU32::new(0),
            spare: 0,
        };
        // SAFETY: Promised by the caller.
        unsafe { header.write(fresh) };
    }

    /// Notes that the bio itself has ended with `status`; whether nothing else is to come.
    pub(crate) fn own_ended(&self, status: Status) -> bool {
        if self.pending.load(Ordering::Acquire) == 0 {
            return true;
        }
        self.own_status.store(status.into(), Ordering::Relaxed);
        // Release: the other end must see the status. Acquire: we must see the other's.
        self.pending.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// The status of the mirror, `None` if the bio has none.
    pub(crate) fn mirror_status(&self) -> Option<Status> {
        Status::try_from(self.mirror_status.load(Ordering::Relaxed)).ok()
    }
}

/// A pool of bios for mirrors: second bios that write the same pages elsewhere.
///
/// # Invariants
///
/// Holds an initialised `bio_set` whose bios have a [`MirrorLink`] in front.
#[pin_data(PinnedDrop)]
pub struct MirrorPool {
    #[pin]
    set: Opaque<k::bio_set>,
}

/// In front of a mirror: the bio it mirrors and that bio's header.
#[repr(C)]
struct MirrorLink {
    original: *mut k::bio,
    header: *const Header,
}

// SAFETY: A bio_set may be used from every CPU.
unsafe impl Send for MirrorPool {}
// SAFETY: As above.
unsafe impl Sync for MirrorPool {}

impl MirrorPool {
    /// Creates a pool.
    pub fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // INVARIANT: `bioset_init` is told to leave room for the link.
            set <- Opaque::try_ffi_init(|slot: *mut k::bio_set| {
                // SAFETY: `slot` is memory for this type; `bioset_init` wants it zeroed.
                unsafe { slot.write_bytes(0, 1) };
                let pad = core::mem::size_of::<MirrorLink>() as u32;
                // SAFETY: As above.
                kernel::error::to_result(unsafe { k::bioset_init(slot, 64, pad, 0) })
            }),
        }? Error)
    }

    /// Submits a mirror of `bio` to `sector` of `dev`. The bio, which must be submitted next (or
    /// returned from `map` as remapped), counts as ended only when both have ended.
    ///
    /// Never waits: `false`, and nothing done, when there is no memory at once or when the bio has
    /// a mirror already. `D` is the target's per-bio data.
    pub fn mirror<D: PerBio>(&self, bio: &mut Bio, dev: &BlockDevice, sector: u64) -> bool {
        let header = bio.header::<D>();
        // SAFETY: The header was initialised when the bio entered `map`.
        let header_ref = unsafe { &*header };
        if header_ref.mirror_status().is_some() {
            return false;
        }
        // SAFETY: All three are live. The mirror shares the bio's pages, which stay until the bio
        // ends, and that waits for the mirror by `Header::own_ended`.
        let raw = unsafe { bindings::presnap_bio_clone(dev.as_raw(), bio.raw(), self.set.get()) };
        if raw.is_null() {
            return false;
        }
        header_ref.mirror_status.store(STS_OK.into(), Ordering::Relaxed);
        header_ref.pending.store(2, Ordering::Release);
        // SAFETY: The pool leaves room for a link in front of each bio.
        let link = unsafe { raw.cast::<MirrorLink>().sub(1) };
        // SAFETY: As above; ours alone until submitted.
        unsafe { link.write(MirrorLink { original: bio.raw(), header }) };
        // SAFETY: Ours alone until submitted.
        unsafe { (*raw).bi_iter.bi_sector = sector };
        // SAFETY: As above.
        unsafe { (*raw).bi_end_io = Some(mirror_end_io) };
        // SAFETY: Complete and aimed at an open device.
        unsafe { k::submit_bio_noacct(raw) };
        true
    }
}

#[pinned_drop]
impl PinnedDrop for MirrorPool {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Initialised by the type invariant. No mirror is left: each is part of a bio of
        // the target that owns the pool, and device-mapper destroys a target after its bios.
        unsafe { k::bioset_exit(self.set.get()) };
    }
}

/// # Safety
///
/// Called by the block layer, once, with a mirror that `MirrorPool::mirror` submitted.
unsafe extern "C" fn mirror_end_io(mirror: *mut k::bio) {
    // SAFETY: Called once for a live mirror.
    let status = unsafe { (*mirror).bi_status };
    // SAFETY: `MirrorPool::mirror` wrote the link.
    let link = unsafe { mirror.cast::<MirrorLink>().sub(1).read() };
    // SAFETY: Drops the only reference.
    unsafe { k::bio_put(mirror) };
    // SAFETY: The original, and its per-bio data with it, exists until both ends have come, and
    // ours comes below.
    let header = unsafe { &*link.header };
    header.mirror_status.store(status.into(), Ordering::Relaxed);
    if header.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
        // The original ended first and was kept; end it again, now for good.
        let own = header.own_status.load(Ordering::Relaxed) as Status;
        // SAFETY: Its own end has come and returned "incomplete", so that we own it now.
        unsafe { bindings::presnap_bio_endio(link.original, own) };
    }
}
