// SPDX-License-Identifier: GPL-2.0-only

//! The character device `/dev/presnap`: the I/O records of a device as a stream.
//!
//! A reader writes `<major>:<minor>` of the mapped device, then reads whole records of 32 bytes. What
//! was overwritten before it was read is counted, in a record of kind 255 that precedes the next.

use crate::device::Device;
use crate::registry;
use kernel::fs::{File, Kiocb};
use kernel::iov::{IovIterDest, IovIterSource};
use kernel::miscdevice::{MiscDevice, MiscDeviceOptions, MiscDeviceRegistration};
use kernel::new_mutex;
use kernel::prelude::*;
use kernel::sync::{Arc, Mutex};
use kernel::time::delay::fsleep;
use kernel::time::Delta;
use presnap_abi::dm::DeviceNumber;
use presnap_engine::record::{IoKind, IoRecord, RECORD_BYTES};
use presnap_engine::table::parse_number;

/// How the device is called.
pub(crate) const OPTIONS: MiscDeviceOptions = MiscDeviceOptions { name: c"presnap" };

/// Records copied at once.
const BATCH: usize = 32;
/// Kind of the record that counts losses.
const LOSSES: u8 = 255;

struct Position {
    number: DeviceNumber,
    device: Arc<Device>,
    cursor: u64,
}

impl Position {
    /// When the origin grows another device takes the place of the one before, whose records are read first.
    fn follow(&mut self) {
        if let Some(device) = registry::find(self.number) {
            if !Arc::ptr_eq(&device, &self.device) {
                self.device = device;
                self.cursor = 0;
            }
        }
    }
}

/// An open file.
#[pin_data]
pub(crate) struct Reader {
    #[pin]
    position: Mutex<Option<Position>>,
}

fn parse_device(input: &[u8]) -> Option<DeviceNumber> {
    let mut parts = input.trim_ascii().split(|&c| c == b':');
    let mut number = || u32::try_from(parse_number(parts.next()?)?).ok();
    let (major, minor) = (number()?, number()?);
    (parts.next().is_none() && major < 1 << 12 && minor < 1 << 20)
        .then(|| DeviceNumber::new(major, minor))
}

#[vtable]
impl MiscDevice for Reader {
    type Ptr = Pin<KBox<Self>>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        KBox::pin_init(
            pin_init!(Self { position <- new_mutex!(None, "presnap::reader") }),
            GFP_KERNEL,
        )
    }

    fn write_iter(kiocb: Kiocb<'_, Self::Ptr>, iov: &mut IovIterSource<'_>) -> Result<usize> {
        let mut input = [0u8; 32];
        let n = iov.copy_from_iter(&mut input);
        if !iov.is_empty() {
            return Err(EINVAL);
        }
        let number = input.get(..n).and_then(parse_device).ok_or(EINVAL)?;
        let device = registry::find(number).ok_or(ENODEV)?;
        let cursor = device.ring.head().saturating_sub(device.ring.capacity());
        *kiocb.file().position.lock() = Some(Position { number, device, cursor });
        Ok(n)
    }

    fn read_iter(kiocb: Kiocb<'_, Self::Ptr>, iov: &mut IovIterDest<'_>) -> Result<usize> {
        if iov.len() < RECORD_BYTES {
            return Err(EINVAL);
        }
        let file = kiocb.file();
        let copied = copy_records(&file.position, iov)?;
        if copied > 0 {
            return Ok(copied);
        }
        fsleep(Delta::from_millis(100));
        {
            let mut guard = file.position.lock();
            if let Some(position) = (*guard).as_mut() {
                position.follow();
            }
        }
        copy_records(&file.position, iov)
    }
}

fn copy_records(position: &Mutex<Option<Position>>, iov: &mut IovIterDest<'_>) -> Result<usize> {
    let mut guard = position.lock();
    let position = (*guard).as_mut().ok_or(ENODEV)?;
    let blank = IoRecord { time_ns: 0, op: 0, sector: 0, sectors: 0, kind: IoKind::Flush };
    let mut records = [blank; BATCH];
    let mut copied = 0usize;
    loop {
        // One place is kept for a record that counts losses.
        let room = (iov.len() / RECORD_BYTES).min(BATCH);
        if room == 0 {
            return Ok(copied);
        }
        let wanted = if room > 1 { room.wrapping_sub(1) } else { 1 };
        let before = position.cursor;
        let Some(place) = records.get_mut(..wanted) else { return Ok(copied) };
        let outcome = position.device.ring.read(&mut position.cursor, place);
        if outcome.lost > 0 && room == 1 {
            // No place for both: the count now, the records at the next call.
            position.cursor = before.wrapping_add(outcome.lost);
        }
        if outcome.lost > 0 {
            let losses = IoRecord { op: outcome.lost, ..blank };
            let mut bytes = losses.to_bytes();
            if let Some(kind) = bytes.get_mut(28) {
                *kind = LOSSES;
            }
            copied = copied.saturating_add(iov.copy_to_iter(&bytes));
            if room == 1 {
                return Ok(copied);
            }
        }
        for record in records.iter().take(outcome.count) {
            let n = iov.copy_to_iter(&record.to_bytes());
            copied = copied.saturating_add(n);
            if n < RECORD_BYTES {
                return if copied > 0 { Ok(copied) } else { Err(EFAULT) };
            }
        }
        if outcome.count == 0 {
            return Ok(copied);
        }
    }
}
