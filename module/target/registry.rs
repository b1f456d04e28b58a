// SPDX-License-Identifier: GPL-2.0-only

//! The open devices, by region: a table that is loaded while another one is live shares its device.

use crate::device::{Device, Guard};
use crate::knobs::Knobs;
use crate::region::{self, image_is_live};
use crate::worker::{Found, Worker};
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;
use presnap_abi::dm::{self, Constructor, DeviceNumber, MappedDevice};
use presnap_abi::thread::Thread;
use presnap_engine::table::{Features, OnError};

struct Entry {
    device: Arc<Device>,
    /// Mapped devices whose tables use it, one for each table.
    users: KVec<DeviceNumber>,
    /// Stopped by being dropped.
    _worker: Thread,
}

presnap_abi::global_mutex!(mod lock, static ENTRIES: Mutex<KVec<Entry>> = KVec::new());

/// Prepares the list.
pub(crate) fn init() {
    lock::init();
}

/// One table's use of a device. Dropping the last one closes the region.
pub(crate) struct User {
    device: Arc<Device>,
    md: Arc<MappedDevice>,
    features: Features,
}

impl User {
    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The table is live: its features count, and events go to its mapped device.
    pub(crate) fn resumed(&self, md: &Arc<MappedDevice>) {
        if let Some(scope) = self.features.scope {
            self.device.knobs.set_scope(scope);
        }
        let fail = self.features.on_error == Some(OnError::FailWrites);
        self.device.fail_writes.store(fail, Ordering::Relaxed);
        self.device.low_water_armed.store(true, Ordering::Relaxed);
        *self.device.events.lock() = Some(md.clone());
    }
}

impl Drop for User {
    fn drop(&mut self) {
        {
            let mut events = self.device.events.lock();
            if events.as_ref().is_some_and(|md| Arc::ptr_eq(md, &self.md)) {
                *events = None;
            }
        }
        let mut entries = lock::ENTRIES.lock();
        let Some(i) = entries.iter().position(|e| Arc::ptr_eq(&e.device, &self.device)) else {
            return;
        };
        let last = entries.get_mut(i).is_some_and(|entry| {
            if let Some(k) = entry.users.iter().position(|&n| n == self.md.number()) {
                let _ = entry.users.remove(k);
            }
            entry.users.is_empty()
        });
        if last {
            // Nobody tells the views of what happens to the origin from here on.
            self.device.lose_images();
            // Stops the worker, which closes the region in order, while the devices are still open.
            // The list stays locked: nobody may open the region before that.
            drop(entries.remove(i));
        }
    }
}

/// Opens the device for a table, or shares the one that is open. Sleeps.
pub(crate) fn open(
    ctor: &mut Constructor<'_>,
    origin: &dm::Device,
    region: &dm::Device,
    sectors: u64,
    features: &Features,
    md: &Arc<MappedDevice>,
) -> Result<User> {
    let (origin, region) = (origin.block(), region.block());
    let mut entries = lock::ENTRIES.lock();
    let open = entries.iter_mut().find(|e| e.device.region.number() == region.number());
    if let Some(entry) = open {
        let same_md = entry.users.iter().all(|&n| n == md.number());
        if entry.device.origin.number() != origin.number() || !same_md {
            ctor.error(c"Region is in use by another presnap device");
            return Err(EBUSY);
        }
        if entry.device.origin_sectors != sectors {
            ctor.error(c"The size cannot change while the region is open");
            return Err(EINVAL);
        }
        make_room(&mut entry.users)?;
        entry.users.push_within_capacity(md.number()).map_err(|_| ENOMEM)?;
        let device = entry.device.clone();
        return Ok(User { device, md: md.clone(), features: *features });
    }
    let opened = region::open(ctor, origin, region, sectors, features)?;
    let region::Opened { parts, found, mut mark } = opened;
    let device = Device::new(parts, Knobs::new())?;
    restore_guard(&device);
    let mut users = KVec::with_capacity(1, GFP_KERNEL)?;
    users.push_within_capacity(md.number()).map_err(|_| ENOMEM)?;
    make_room(&mut entries)?;
    let worker = make_worker(&device, found)?;
    // Only now: what has failed so far has left the region as it was.
    mark.set(&device).inspect_err(|_| ctor.error(c"Cannot write to the region device"))?;
    let worker = Thread::spawn(c"presnap", device.wake.clone(), worker)
        .inspect_err(|_| mark.take_back(&device))?;
    let entry = Entry { device: device.clone(), users, _worker: worker };
    entries.push_within_capacity(entry).map_err(|_| ENOMEM)?;
    Ok(User { device, md: md.clone(), features: *features })
}

/// Not inlined: what is made here is large before it is on the heap, and the caller's stack is not for all of it at once.
#[inline(never)]
fn make_worker(device: &Arc<Device>, found: Found) -> Result<KBox<Worker>> {
    Ok(KBox::new(Worker::new(device, found)?, GFP_KERNEL)?)
}

/// Makes room for one more. Sleeps.
///
/// Not inlined: the kernel's own code for it has overflow checks, so it is among the few known in `scripts/panics`.
#[inline(never)]
fn make_room<T>(values: &mut KVec<T>) -> Result {
    values.reserve(1, GFP_KERNEL).map_err(|_| ENOMEM)
}

/// The device whose mapped device or region has this number.
pub(crate) fn find(number: DeviceNumber) -> Option<Arc<Device>> {
    let entries = lock::ENTRIES.lock();
    let found =
        entries.iter().find(|e| e.users.contains(&number) || e.device.region.number() == number)?;
    Some(found.device.clone())
}

/// Puts the guard up for images that were live when the region was closed.
fn restore_guard(device: &Device) {
    let newest = {
        let root = device.root.lock();
        if !image_is_live(&root) {
            return;
        }
        root.newest().map_or(0, |r| r.id)
    };
    let slots = device.slots.lock();
    for slot in 0..slots.total() {
        if let Some(e) = slots.entry(slot).filter(|e| e.snapshot == newest) {
            if e.kind == presnap_engine::region::SlotKind::Data {
                device.generations.preserved().set_range(e.block, 1);
            }
        }
    }
    device.set_guard(Guard::Image);
}
