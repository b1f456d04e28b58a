// SPDX-License-Identifier: GPL-2.0-only

//! Device-mapper targets.
//!
//! A type that implements [`Target`] becomes a target type by [`Registration::new`]. Device-mapper
//! calls `map` and `end_io` from many CPUs at once, so a target is only ever shared.

use crate::bindings::{self, dm_dev, dm_target, target_type};
use crate::bio::{per_bio_size, Bio, Header, PerBio, Status};
use core::fmt;
use core::ptr::NonNull;
use kernel::bindings as k;
use kernel::prelude::*;
use kernel::types::Opaque;

/// What `map` did with a bio.
#[must_use]
pub enum Disposition {
    /// Aimed at another device; device-mapper submits it.
    Remapped(Bio),
    /// Kept (in a list, say): it will be submitted or ended later.
    Kept,
    /// To be ended with an I/O error.
    Failed(Bio),
}

/// Which status is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum StatusKind {
    /// `dmsetup status`.
    Info,
    /// `dmsetup table`: must load again as it is.
    Table,
    /// The measurement line of IMA.
    Ima,
}

/// A device-mapper target.
pub trait Target: Sized + Send + Sync + 'static {
    /// What the target keeps for each bio on its way.
    type PerBio: PerBio;
    /// Name in tables.
    const NAME: &'static CStr;
    /// Version: major, minor, patch.
    const VERSION: [u32; 3];
    /// Whether tables may be loaded read-only.
    const READ_ONLY: bool = false;

    /// Makes a target from the arguments of its table line. Sleeps.
    ///
    /// On failure, [`Constructor::error`] should have said why.
    fn construct(ctor: &mut Constructor<'_>, args: Args<'_>) -> Result<KBox<Self>>;

    /// Decides about a bio. Must not wait.
    fn map(&self, bio: MapBio) -> Disposition;

    /// Told that a bio returned as remapped, or submitted later, has ended; returns the status to
    /// report. `mirror` is that of its mirror. Any context.
    fn end_io(&self, bio: &EndedBio, status: Status, mirror: Option<Status>) -> Status {
        let _ = (bio, mirror);
        status
    }

    /// The table is about to be live; on failure it is not, and the device stays suspended.
    fn preresume(&self) -> Result {
        Ok(())
    }

    /// The table is live from now on.
    fn resume(&self) {}

    /// No bio is on its way any more, and none comes until `resume`.
    fn postsuspend(&self) {}

    /// Writes one line of status. Must not wait for I/O.
    fn status(&self, kind: StatusKind, out: &mut Text<'_>);

    /// Answers a message. `args` has at least one word.
    fn message(&self, args: Args<'_>, out: &mut Text<'_>) -> Result {
        let _ = (args, out);
        Err(EINVAL)
    }

    /// Calls `f` for each device under the target: device, first sector, sectors.
    fn devices(&self, f: &mut dyn FnMut(&Device, u64, u64) -> i32) -> i32;

    /// Granularity of discards in bytes that the target prefers, 0 for that of its devices.
    fn discard_granularity(&self) -> u32 {
        0
    }
}

/// A bio that has ended, seen in `end_io`.
pub struct EndedBio {
    raw: NonNull<k::bio>,
}

impl EndedBio {
    /// Its per-bio data.
    pub fn load<D: PerBio>(&self) -> D {
        // SAFETY: Live during `end_io`; the temporary handle is forgotten, not dropped.
        let bio = core::mem::ManuallyDrop::new(unsafe { Bio::from_raw(self.raw) });
        bio.load()
    }
}

/// A bio within `map`.
pub struct MapBio {
    bio: Bio,
    offset: u64,
}

impl MapBio {
    /// First sector, relative to the start of the target.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The bio.
    pub fn bio(&self) -> &Bio {
        &self.bio
    }

    /// Keeps only the first `sectors` sectors; the rest comes as a bio of its own.
    pub fn accept_partial(&mut self, sectors: u32) {
        self.bio.accept_partial(sectors);
    }

    /// Takes the bio out.
    pub fn into_bio(self) -> Bio {
        self.bio
    }
}

/// The C string at `p`. What the kernel crate has for this adds 1 to the length with an overflow check.
///
/// # Safety
///
/// A NUL-terminated string that lives for `'a`, and does not change.
unsafe fn c_str<'a>(p: *const kernel::ffi::c_char) -> &'a CStr {
    // SAFETY: Promised by the caller.
    let len = unsafe { k::strlen(p) };
    // SAFETY: A string and its NUL end within the address space, so 1 more is no overflow; `strlen` found the
    // first NUL right there.
    unsafe {
        CStr::from_bytes_with_nul_unchecked(core::slice::from_raw_parts(
            p.cast(),
            len.wrapping_add(1),
        ))
    }
}

/// The words of a table line or message.
#[derive(Clone, Copy)]
pub struct Args<'a> {
    argv: &'a [*mut kernel::ffi::c_char],
}

impl<'a> Args<'a> {
    /// # Safety
    ///
    /// `argv` must point to `argc` NUL-terminated strings that live for `'a`.
    unsafe fn from_raw(argc: u32, argv: *mut *mut kernel::ffi::c_char) -> Self {
        if argc == 0 || argv.is_null() {
            return Self { argv: &[] };
        }
        // SAFETY: Promised by the caller.
        Self { argv: unsafe { core::slice::from_raw_parts(argv, argc as usize) } }
    }

    /// Number of words.
    pub fn len(&self) -> usize {
        self.argv.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.argv.is_empty()
    }

    /// Word `i` as bytes; `None` past the end.
    pub fn get(&self, i: usize) -> Option<&'a [u8]> {
        self.c_str(i)?.to_bytes_with_nul().split_last().map(|(_, word)| word)
    }

    fn c_str(&self, i: usize) -> Option<&'a CStr> {
        let word = *self.argv.get(i)?;
        // SAFETY: A NUL-terminated string that lives for `'a`, by construction.
        Some(unsafe { c_str(word) })
    }
}

/// The target while it is constructed.
pub struct Constructor<'a> {
    ti: &'a mut dm_target,
}

impl Constructor<'_> {
    /// Sets the error that the core logs for a failed table line.
    pub fn error(&mut self, message: &'static CStr) {
        self.ti.error = message.as_char_ptr().cast_mut();
    }

    /// Length of the target in sectors.
    pub fn len(&self) -> u64 {
        self.ti.len
    }

    /// Whether the length is zero (the core refuses such tables).
    pub fn is_empty(&self) -> bool {
        self.ti.len == 0
    }

    /// Whether the table is loaded read-only.
    pub fn read_only(&self) -> bool {
        let ti: *const dm_target = self.ti;
        // SAFETY: A target in construction has a table.
        unsafe { bindings::presnap_read_only(ti.cast_mut()) != 0 }
    }

    /// The mapped device that the table belongs to.
    pub fn mapped_device(&mut self) -> MappedDevice {
        let ti: *mut dm_target = self.ti;
        // SAFETY: A target in construction has a table with a mapped device.
        let dev = unsafe { bindings::presnap_target_dev(ti) };
        MappedDevice { ti, dev }
    }

    /// Opens the device called `word` i of `args` (path or `major:minor`).
    pub fn device(&mut self, args: Args<'_>, i: usize, writable: bool) -> Result<Device> {
        let path = args.c_str(i).ok_or(EINVAL)?;
        self.open(path, writable)
    }

    /// The number of the device called `word` i of `args` (path or `major:minor`), not opened.
    pub fn device_number(&self, args: Args<'_>, i: usize) -> Result<DeviceNumber> {
        let path = args.c_str(i).ok_or(EINVAL)?;
        let mut number = 0;
        // SAFETY: A C string and a place for the result.
        kernel::error::to_result(unsafe {
            bindings::dm_devt_from_path(path.as_char_ptr(), &mut number)
        })?;
        Ok(DeviceNumber(number))
    }

    /// Opens the device with this number.
    pub fn device_by_number(&mut self, number: DeviceNumber, writable: bool) -> Result<Device> {
        use fmt::Write;
        let mut buf = [0u8; 24];
        let mut text = Text::new(&mut buf);
        write!(text, "{number}").map_err(|_| EINVAL)?;
        let path = CStr::from_bytes_until_nul(&buf).map_err(|_| EINVAL)?;
        self.open(path, writable)
    }

    fn open(&mut self, path: &CStr, writable: bool) -> Result<Device> {
        let mut raw: *mut dm_dev = core::ptr::null_mut();
        let mode =
            if writable { k_blk_open_read() | k_blk_open_write() } else { k_blk_open_read() };
        let ti: *mut dm_target = self.ti;
        // SAFETY: `ti` is in its constructor, `path` a C string, `raw` a place for the result.
        kernel::error::to_result(unsafe {
            bindings::dm_get_device(ti, path.as_char_ptr(), mode, &mut raw)
        })?;
        let dev = NonNull::new(raw).ok_or(ENODEV)?;
        // INVARIANT: Just opened for this target; closed in `Drop`, which the target's
        // destructor runs before the core frees `ti`.
        // SAFETY: An open dm_dev has a block device.
        let bdev = unsafe { (*dev.as_ptr()).bdev };
        let block = BlockDevice(NonNull::new(bdev.cast()).ok_or(ENODEV)?);
        Ok(Device { ti, dev, block })
    }
}

const fn k_blk_open_read() -> u32 {
    1
}

const fn k_blk_open_write() -> u32 {
    2
}

/// The mapped device of a target, good as long as the target lives.
///
/// # Invariants
///
/// `ti` is the target whose private data holds this.
pub struct MappedDevice {
    ti: *mut dm_target,
    dev: u32,
}

// SAFETY: Only used for calls that may come from any thread.
unsafe impl Send for MappedDevice {}
// SAFETY: As above.
unsafe impl Sync for MappedDevice {}

impl MappedDevice {
    /// Its device number.
    pub fn number(&self) -> DeviceNumber {
        DeviceNumber(self.dev)
    }

    /// Its name for messages (`253:0`), into `f`.
    pub fn with_name<R>(&self, f: impl FnOnce(&CStr) -> R) -> R {
        // SAFETY: The target lives by the invariant, so does its table, and its name with it.
        let name = unsafe { bindings::presnap_target_name(self.ti) };
        // SAFETY: A NUL-terminated string, as above.
        f(unsafe { c_str(name) })
    }

    /// Raises an event: whoever waits by `dmsetup wait` looks at the status. Sleeps.
    pub fn raise_event(&self) {
        // SAFETY: The target and its table live by the invariant.
        unsafe { bindings::dm_table_event((*self.ti).table) };
    }

    pub(crate) fn kobject(&self) -> *mut k::kobject {
        // SAFETY: The target, and the disk of its mapped device, live by the invariant.
        unsafe { bindings::presnap_target_kobject(self.ti) }.cast()
    }
}

/// A device number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DeviceNumber(u32);

impl DeviceNumber {
    /// From its parts.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self((major << 20) | (minor & 0xf_ffff))
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0 >> 20, self.0 & 0xf_ffff)
    }
}

impl kernel::fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A block device that somebody keeps open.
///
/// # Invariants
///
/// The pointer is a block device that is open for as long as this exists: a [`Device`] of the same
/// disk outlives it.
#[derive(Clone, Copy)]
pub struct BlockDevice(NonNull<k::block_device>);

// SAFETY: Block devices are used from every thread.
unsafe impl Send for BlockDevice {}
// SAFETY: As above.
unsafe impl Sync for BlockDevice {}

impl BlockDevice {
    pub(crate) fn as_raw(&self) -> *mut k::block_device {
        self.0.as_ptr()
    }

    /// Size in sectors.
    pub fn sectors(&self) -> u64 {
        // SAFETY: Open by the type invariant.
        unsafe { bindings::presnap_bdev_sectors(self.as_raw()) }
    }

    /// Whether it has a volatile write cache, so that written data needs a flush to be durable.
    pub fn has_write_cache(&self) -> bool {
        // SAFETY: Open by the type invariant.
        unsafe { bindings::presnap_bdev_write_cache(self.as_raw()) }
    }

    /// Its device number.
    pub fn number(&self) -> DeviceNumber {
        // SAFETY: Open by the type invariant.
        DeviceNumber(unsafe { (*self.as_raw()).bd_dev })
    }
}

/// A device opened for a target; closed when dropped.
///
/// # Invariants
///
/// `dev` was opened for `ti` and not closed; `ti` is the target whose private data holds this.
pub struct Device {
    ti: *mut dm_target,
    dev: NonNull<dm_dev>,
    block: BlockDevice,
}

// SAFETY: Only used for calls that may come from any thread.
unsafe impl Send for Device {}
// SAFETY: As above.
unsafe impl Sync for Device {}

impl Device {
    /// The block device.
    ///
    /// The copy must not be used after this is dropped; that is what its invariant asks of the
    /// targets, which close their devices last.
    pub fn block(&self) -> BlockDevice {
        self.block
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: Open by the type invariant, and `ti` is in its destructor or constructor.
        unsafe { bindings::dm_put_device(self.ti, self.dev.as_ptr()) };
    }
}

/// A bounded line of text that the core gave us to write to.
pub struct Text<'a> {
    buf: &'a mut [u8],
    len: usize,
    truncated: bool,
}

impl<'a> Text<'a> {
    /// Writes to `buf`, keeping room for a final NUL.
    pub fn new(buf: &'a mut [u8]) -> Self {
        if let Some(first) = buf.first_mut() {
            *first = 0;
        }
        Self { buf, len: 0, truncated: false }
    }

    /// # Safety
    ///
    /// `result` must point to `maxlen` writable bytes for `'a`.
    unsafe fn from_raw(result: *mut kernel::ffi::c_char, maxlen: u32) -> Self {
        // SAFETY: Promised by the caller.
        Self::new(unsafe { core::slice::from_raw_parts_mut(result.cast(), maxlen as usize) })
    }

    /// Bytes written.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether something did not fit.
    pub fn truncated(&self) -> bool {
        self.truncated
    }
}

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = self.buf.len().saturating_sub(self.len).saturating_sub(1);
        let n = s.len().min(room);
        if n < s.len() {
            self.truncated = true;
        }
        let (Some(src), Some(dst)) =
            (s.as_bytes().get(..n), self.buf.get_mut(self.len..self.len.wrapping_add(n)))
        else {
            return Ok(());
        };
        dst.copy_from_slice(src);
        self.len = self.len.wrapping_add(n);
        if let Some(end) = self.buf.get_mut(self.len) {
            *end = 0;
        }
        Ok(())
    }
}

/// A registered target type.
///
/// # Invariants
///
/// `inner` is registered with device-mapper and pinned.
#[pin_data(PinnedDrop)]
pub struct Registration {
    #[pin]
    inner: Opaque<target_type>,
}

// SAFETY: Only registered and unregistered, from any thread.
unsafe impl Send for Registration {}
// SAFETY: As above.
unsafe impl Sync for Registration {}

impl Registration {
    /// Registers `T` as a target type of `module`.
    pub fn new<T: Target>(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            inner <- Opaque::try_ffi_init(move |slot: *mut target_type| {
                let tt = target_type {
                    // `map` never waits, so a bio that must not wait is as good as any.
                    features: bindings::DM_TARGET_NOWAIT.into(),
                    name: T::NAME.as_char_ptr(),
                    module: module.as_ptr().cast(),
                    version: T::VERSION,
                    ctr: Some(ctr::<T>),
                    dtr: Some(dtr::<T>),
                    map: Some(map::<T>),
                    end_io: Some(end_io::<T>),
                    preresume: Some(preresume::<T>),
                    resume: Some(resume::<T>),
                    postsuspend: Some(postsuspend::<T>),
                    status: Some(status::<T>),
                    message: Some(message::<T>),
                    iterate_devices: Some(iterate_devices::<T>),
                    io_hints: Some(io_hints::<T>),
                    ..Default::default()
                };
                // SAFETY: `slot` is pinned memory for this type.
                unsafe { slot.write(tt) };
                // SAFETY: Just written; it is unregistered before its memory goes.
                kernel::error::to_result(unsafe { bindings::dm_register_target(slot) })
            }),
        }? Error)
    }
}

#[pinned_drop]
impl PinnedDrop for Registration {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by the type invariant. The core holds a reference to the module for
        // each table that uses the type, so there is none left.
        unsafe { bindings::dm_unregister_target(self.inner.get()) };
    }
}

/// # Safety
///
/// `ti` must be a target that `ctr::<T>` made, and not be destroyed during `'a`.
unsafe fn private<'a, T: Target>(ti: *mut dm_target) -> &'a T {
    // SAFETY: `ctr` stored a box of `T` there, and `dtr` has not run.
    unsafe { &*(*ti).private.cast::<T>() }
}

/// # Safety
///
/// Called by device-mapper with a new target and `argc` strings.
unsafe extern "C" fn ctr<T: Target>(
    ti: *mut dm_target,
    argc: kernel::ffi::c_uint,
    argv: *mut *mut kernel::ffi::c_char,
) -> kernel::ffi::c_int {
    // SAFETY: The core passes a target that nobody else sees yet.
    let ti = unsafe { &mut *ti };
    // SAFETY: The core passes `argc` strings that live for this call.
    let args = unsafe { Args::from_raw(argc, argv) };
    ti.num_flush_bios = 1;
    ti.num_discard_bios = 1;
    ti.num_secure_erase_bios = 1;
    ti.num_write_zeroes_bios = 1;
    ti.per_io_data_size = per_bio_size::<T::PerBio>() as u32;
    let unknown = ti.error;
    let mut ctor = Constructor { ti };
    if !T::READ_ONLY && ctor.read_only() {
        ctor.error(c"the device must be opened read-write");
        return EROFS.to_errno();
    }
    match T::construct(&mut ctor, args) {
        Ok(target) => {
            ctor.ti.private = KBox::into_raw(target).cast();
            0
        }
        Err(e) => {
            if core::ptr::eq(ctor.ti.error, unknown) {
                ctor.error(if e == ENOMEM {
                    c"Not enough memory"
                } else {
                    c"Cannot create target"
                });
            }
            e.to_errno()
        }
    }
}

/// # Safety
///
/// Called by device-mapper, once, with a target that `ctr` made and that has no bio on its way.
unsafe extern "C" fn dtr<T: Target>(ti: *mut dm_target) {
    // SAFETY: The core destroys a target once, after its last bio; `ctr` stored the box.
    drop(unsafe { KBox::from_raw((*ti).private.cast::<T>()) });
}

/// # Safety
///
/// Called by device-mapper with a target that `ctr` made and a bio cloned for it.
unsafe extern "C" fn map<T: Target>(ti: *mut dm_target, bio: *mut k::bio) -> kernel::ffi::c_int {
    // SAFETY: A live target during `map`.
    let target = unsafe { private::<T>(ti) };
    let Some(raw) = NonNull::new(bio) else {
        return bindings::DM_MAPIO_KILL as i32;
    };
    // SAFETY: The core hands us the bio.
    let bio = unsafe { Bio::from_raw(raw) };
    // SAFETY: We own the bio, and so its per-bio memory.
    unsafe { Header::init(bio.header::<T::PerBio>()) };
    // SAFETY: `begin` does not change in the life of a target.
    let begin = unsafe { (*ti).begin };
    let offset = bio.sector().wrapping_sub(begin);
    match target.map(MapBio { bio, offset }) {
        Disposition::Remapped(bio) => {
            core::mem::forget(bio);
            bindings::DM_MAPIO_REMAPPED as i32
        }
        Disposition::Kept => bindings::DM_MAPIO_SUBMITTED as i32,
        Disposition::Failed(bio) => {
            core::mem::forget(bio);
            bindings::DM_MAPIO_KILL as i32
        }
    }
}

/// # Safety
///
/// Called by device-mapper with a bio that `map` remapped or kept, and its status.
unsafe extern "C" fn end_io<T: Target>(
    ti: *mut dm_target,
    bio: *mut k::bio,
    error: *mut Status,
) -> kernel::ffi::c_int {
    // SAFETY: A target lives as long as its bios.
    let target = unsafe { private::<T>(ti) };
    // SAFETY: The core passes a valid pointer.
    let status = unsafe { *error };
    let Some(raw) = NonNull::new(bio) else {
        return bindings::DM_ENDIO_DONE as i32;
    };
    // SAFETY: Live during this call; forgotten, not dropped.
    let handle = core::mem::ManuallyDrop::new(unsafe { Bio::from_raw(raw) });
    let header: *const Header = handle.header::<T::PerBio>();
    // SAFETY: Initialised in `map`.
    let header = unsafe { &*header };
    if !header.own_ended(status) {
        return bindings::DM_ENDIO_INCOMPLETE as i32;
    }
    let status = target.end_io(&EndedBio { raw }, status, header.mirror_status());
    // SAFETY: As above.
    unsafe { *error = status };
    bindings::DM_ENDIO_DONE as i32
}

/// # Safety
///
/// Called by device-mapper with a target that `ctr` made.
unsafe extern "C" fn preresume<T: Target>(ti: *mut dm_target) -> kernel::ffi::c_int {
    // SAFETY: A live target.
    match unsafe { private::<T>(ti) }.preresume() {
        Ok(()) => 0,
        Err(e) => e.to_errno(),
    }
}

/// # Safety
///
/// Called by device-mapper with a target that `ctr` made.
unsafe extern "C" fn resume<T: Target>(ti: *mut dm_target) {
    // SAFETY: A live target.
    unsafe { private::<T>(ti) }.resume();
}

/// # Safety
///
/// Called by device-mapper with a target that `ctr` made.
unsafe extern "C" fn postsuspend<T: Target>(ti: *mut dm_target) {
    // SAFETY: A live target.
    unsafe { private::<T>(ti) }.postsuspend();
}

/// # Safety
///
/// Called by device-mapper with a target that `ctr` made and a buffer of `maxlen` bytes.
unsafe extern "C" fn status<T: Target>(
    ti: *mut dm_target,
    kind: bindings::status_type_t,
    _flags: kernel::ffi::c_uint,
    result: *mut kernel::ffi::c_char,
    maxlen: kernel::ffi::c_uint,
) {
    let kind = match kind {
        bindings::status_type_t_STATUSTYPE_INFO => StatusKind::Info,
        bindings::status_type_t_STATUSTYPE_TABLE => StatusKind::Table,
        _ => StatusKind::Ima,
    };
    // SAFETY: The core gives us `maxlen` bytes for the call.
    let mut text = unsafe { Text::from_raw(result, maxlen) };
    // SAFETY: A live target.
    unsafe { private::<T>(ti) }.status(kind, &mut text);
}

/// # Safety
///
/// Called by device-mapper with a target that `ctr` made, `argc` strings and a buffer of `maxlen` bytes.
unsafe extern "C" fn message<T: Target>(
    ti: *mut dm_target,
    argc: kernel::ffi::c_uint,
    argv: *mut *mut kernel::ffi::c_char,
    result: *mut kernel::ffi::c_char,
    maxlen: kernel::ffi::c_uint,
) -> kernel::ffi::c_int {
    // SAFETY: The core passes `argc` strings that live for this call.
    let args = unsafe { Args::from_raw(argc, argv) };
    // SAFETY: The core gives us `maxlen` bytes for the call.
    let mut text = unsafe { Text::from_raw(result, maxlen) };
    // SAFETY: A live target.
    match unsafe { private::<T>(ti) }.message(args, &mut text) {
        // Returning 1 tells the core that there is an answer.
        Ok(()) if text.is_empty() => 0,
        Ok(()) => 1,
        Err(e) => e.to_errno(),
    }
}

/// # Safety
///
/// Called by device-mapper with a target that `ctr` made; `callout` takes `data`.
unsafe extern "C" fn iterate_devices<T: Target>(
    ti: *mut dm_target,
    callout: bindings::iterate_devices_callout_fn,
    data: *mut kernel::ffi::c_void,
) -> kernel::ffi::c_int {
    let Some(callout) = callout else { return 0 };
    // SAFETY: A live target.
    unsafe { private::<T>(ti) }.devices(&mut |dev, start, len| {
        // SAFETY: The core's function with the core's data, on a device open for this target.
        unsafe { callout(ti, dev.dev.as_ptr(), start, len, data) }
    })
}

/// # Safety
///
/// Called by device-mapper with a target that `ctr` made and limits that may be changed.
unsafe extern "C" fn io_hints<T: Target>(ti: *mut dm_target, limits: *mut k::queue_limits) {
    // SAFETY: A live target.
    let granularity = unsafe { private::<T>(ti) }.discard_granularity();
    // SAFETY: The core passes limits for us to change.
    let limits = unsafe { &mut *limits };
    if granularity > 0 && limits.max_hw_discard_sectors > 0 {
        limits.discard_granularity = limits.discard_granularity.max(granularity);
    }
}
