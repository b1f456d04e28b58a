// SPDX-License-Identifier: GPL-2.0-only

//! Device-mapper targets.

pub use crate::bio::PerBio;
use crate::bio::{Bio, Status};
use core::fmt;
use kernel::prelude::*;
use presnap_machine::{note, Machine};
use std::cell::Cell;
use std::ffi::CString;
use std::rc::Rc;

/// What `map` did with a bio.
#[must_use]
pub enum Disposition {
    /// Aimed at another device; device-mapper submits it.
    Remapped(Bio),
    /// Kept: it will be submitted or ended later.
    Kept,
    /// To be ended with an I/O error.
    Failed(Bio),
}

/// Which status is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum StatusKind {
    /// `dmsetup status`.
    Info,
    /// `dmsetup table`.
    Table,
    /// The measurement line of IMA.
    Ima,
}

/// A device-mapper target.
pub trait Target: Sized + 'static {
    /// What the target keeps for each bio on its way.
    type PerBio: PerBio;
    /// Name in tables.
    const NAME: &'static CStr;
    /// Version: major, minor, patch.
    const VERSION: [u32; 3];
    /// Whether tables may be loaded read-only.
    const READ_ONLY: bool = false;

    /// Makes a target from the arguments of its table line.
    ///
    /// # Errors
    ///
    /// [`Constructor::error`] says why.
    fn construct(ctor: &mut Constructor<'_>, args: Args<'_>) -> Result<KBox<Self>>;

    /// Decides about a bio. Must not wait.
    fn map(&self, bio: MapBio) -> Disposition;

    /// Told that a bio has ended; returns the status to report.
    fn end_io(&self, bio: &EndedBio, status: Status, mirror: Option<Status>) -> Status {
        let _ = (bio, mirror);
        status
    }

    /// The table is about to be live; on failure it is not.
    ///
    /// # Errors
    ///
    /// Those of the target.
    fn preresume(&self) -> Result {
        Ok(())
    }

    /// The table is live from now on.
    fn resume(&self) {}

    /// No bio is on its way any more, and none comes until `resume`.
    fn postsuspend(&self) {}

    /// Writes one line of status.
    fn status(&self, kind: StatusKind, out: &mut Text<'_>);

    /// Answers a message.
    ///
    /// # Errors
    ///
    /// Those of the target.
    fn message(&self, args: Args<'_>, out: &mut Text<'_>) -> Result {
        let _ = (args, out);
        Err(EINVAL)
    }

    /// Calls `f` for each device under the target.
    fn devices(&self, f: &mut dyn FnMut(&Device, u64, u64) -> i32) -> i32;

    /// Granularity of discards in bytes that the target prefers, 0 for that of its devices.
    fn discard_granularity(&self) -> u32 {
        0
    }
}

/// A bio that has ended, seen in `end_io`.
pub struct EndedBio {
    per_bio: [u64; 4],
}

impl EndedBio {
    pub(crate) fn new(per_bio: [u64; 4]) -> Self {
        Self { per_bio }
    }

    /// Its per-bio data.
    pub fn load<D: PerBio>(&self) -> D {
        D::from_words(self.per_bio)
    }
}

/// A bio within `map`.
pub struct MapBio {
    bio: Bio,
    offset: u64,
}

impl MapBio {
    pub(crate) fn new(bio: Bio, offset: u64) -> Self {
        Self { bio, offset }
    }

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

/// The words of a table line or message.
#[derive(Clone, Copy)]
pub struct Args<'a> {
    words: &'a [CString],
}

impl<'a> Args<'a> {
    /// These words.
    pub fn new(words: &'a [CString]) -> Self {
        Self { words }
    }

    /// Number of words.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Word `i` as bytes; `None` past the end.
    pub fn get(&self, i: usize) -> Option<&'a [u8]> {
        self.words.get(i).map(|word| word.as_bytes())
    }
}

/// The target while it is constructed.
pub struct Constructor<'a> {
    number: DeviceNumber,
    sectors: u64,
    error: Option<&'static CStr>,
    /// The kernel's borrows the target.
    _lifetime: core::marker::PhantomData<&'a ()>,
}

impl Constructor<'_> {
    pub(crate) fn new(number: DeviceNumber, sectors: u64) -> Self {
        Self { number, sectors, error: None, _lifetime: core::marker::PhantomData }
    }

    pub(crate) fn why(&self) -> String {
        self.error.map_or_else(String::new, |words| words.to_string_lossy().into_owned())
    }

    /// Sets the error that is logged for a failed table line.
    pub fn error(&mut self, message: &'static CStr) {
        self.error = Some(message);
    }

    /// Length of the target in sectors.
    pub fn len(&self) -> u64 {
        self.sectors
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.sectors == 0
    }

    /// Whether the table is loaded read-only.
    pub fn read_only(&self) -> bool {
        false
    }

    /// The mapped device that the table belongs to.
    pub fn mapped_device(&mut self) -> MappedDevice {
        MappedDevice::new(self.number)
    }

    /// Opens the device called `word` i of `args`.
    ///
    /// # Errors
    ///
    /// If there is no such device.
    pub fn device(&mut self, args: Args<'_>, i: usize, writable: bool) -> Result<Device> {
        let number = self.device_number(args, i)?;
        self.device_by_number(number, writable)
    }

    /// The number of the device called `word` i of `args`, not opened.
    ///
    /// # Errors
    ///
    /// If it is no number.
    pub fn device_number(&self, args: Args<'_>, i: usize) -> Result<DeviceNumber> {
        let word = args.get(i).and_then(|word| core::str::from_utf8(word).ok()).ok_or(EINVAL)?;
        let (major, minor) = word.split_once(':').ok_or(ENODEV)?;
        let number = |text: &str| text.parse::<u32>().map_err(|_| ENODEV);
        Ok(DeviceNumber::new(number(major)?, number(minor)?))
    }

    /// Opens the device with this number.
    ///
    /// # Errors
    ///
    /// If there is no such device.
    pub fn device_by_number(&mut self, number: DeviceNumber, _writable: bool) -> Result<Device> {
        let machine = Machine::current();
        let found = (0..machine.disks()).find(|&disk| DeviceNumber::of_disk(disk) == number);
        let block = BlockDevice { disk: found.ok_or(ENODEV)?, number };
        Ok(Device { block })
    }
}

/// The mapped device of a target.
pub struct MappedDevice {
    number: DeviceNumber,
    events: Rc<Cell<u64>>,
}

impl MappedDevice {
    pub(crate) fn new(number: DeviceNumber) -> Self {
        Self { number, events: Rc::default() }
    }

    /// Its device number.
    pub fn number(&self) -> DeviceNumber {
        self.number
    }

    /// Its name for messages.
    pub fn with_name<R>(&self, f: impl FnOnce(&str) -> R) -> R {
        f(&self.number.to_string())
    }

    /// Raises an event.
    pub fn raise_event(&self) {
        Machine::current().might_sleep();
        note!("event on {}", self.number);
        self.events.set(self.events.get() + 1);
    }
}

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNumber(u32);

impl DeviceNumber {
    /// From its parts.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self((major << 20) | (minor & 0xf_ffff))
    }

    /// That of a disk of the current machine: different for each machine.
    pub fn of_disk(disk: usize) -> Self {
        Self::new(8, Machine::current().id().wrapping_mul(16).wrapping_add(disk as u32))
    }

    /// That of a mapped device of the current machine.
    pub fn of_mapped(n: u32) -> Self {
        Self::new(253, Machine::current().id().wrapping_mul(16).wrapping_add(n))
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0 >> 20, self.0 & 0xf_ffff)
    }
}

/// A block device that somebody keeps open.
#[derive(Clone, Copy)]
pub struct BlockDevice {
    disk: usize,
    number: DeviceNumber,
}

impl BlockDevice {
    pub(crate) fn disk(&self) -> usize {
        self.disk
    }

    /// Size in sectors.
    pub fn sectors(&self) -> u64 {
        Machine::current().disk(self.disk, |disk| disk.sectors())
    }

    /// Whether it has a volatile write cache.
    pub fn has_write_cache(&self) -> bool {
        Machine::current().disk(self.disk, |disk| disk.cached())
    }

    /// Its device number.
    pub fn number(&self) -> DeviceNumber {
        self.number
    }
}

/// A device opened for a target.
pub struct Device {
    block: BlockDevice,
}

impl Device {
    /// The block device.
    pub fn block(&self) -> BlockDevice {
        self.block
    }
}

/// A bounded line of text.
pub struct Text<'a> {
    buf: &'a mut [u8],
    len: usize,
    truncated: bool,
}

impl<'a> Text<'a> {
    /// Writes to `buf`, keeping room for a final NUL.
    pub fn new(buf: &'a mut [u8]) -> Self {
        Self { buf, len: 0, truncated: false }
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
        let room = self.buf.len().saturating_sub(self.len + 1);
        let n = s.len().min(room);
        self.truncated |= n < s.len();
        self.buf[self.len..self.len + n].copy_from_slice(&s.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}
