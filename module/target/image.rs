// SPDX-License-Identifier: GPL-2.0-only

//! The target `presnap-image`: `<presnap device> <id>`, image id as a read-only device.
//!
//! A block is read from S(N), or else S(N+1), ..., or else the origin. A read of the origin must not
//! be overtaken by a writer whose block has been preserved meanwhile: the read is announced before
//! its place is looked up, and writers wait for announced reads of their areas (design, section 8.5).

use crate::device::{Device, Holder};
use crate::registry;
use crate::route::{areas_of, LONGEST_SECTORS};
use crate::status::begin_measurement;
use crate::words::refuse;
use core::fmt::Write;
use core::sync::atomic::{fence, Ordering};
use kernel::prelude::*;
use kernel::sync::Arc;
use presnap_abi::bio::{Op, Status};
use presnap_abi::dm::{
    self, Args, Constructor, DeviceNumber, Disposition, EndedBio, MapBio, MappedDevice, StatusKind,
    Text,
};
use presnap_engine::geometry::{blocks_touched, BLOCK_SECTORS, BLOCK_SECTORS_SHIFT};
use presnap_engine::region::{Layout, Scope};
use presnap_engine::table::parse_number;

/// A view. Fields are dropped in order: the devices last.
pub(crate) struct Image {
    device: Arc<Device>,
    id: u32,
    /// The presnap device, for the table.
    presnap: DeviceNumber,
    _views: Counted,
    _held: Held,
    origin: dm::Device,
    region: dm::Device,
    sectors: u64,
    /// How often images had been lost when the view was made.
    images_lost: u64,
}

/// The hold of a view on its snapshot.
struct Held {
    device: Arc<Device>,
    id: u32,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.device.control.lock().release(self.id, Holder::View);
    }
}

/// A view counted in `Device::views`, and told of events.
struct Counted {
    device: Arc<Device>,
    md: Arc<MappedDevice>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        {
            let mut views = self.device.view_events.lock();
            if let Some(i) = views.iter().position(|md| Arc::ptr_eq(md, &self.md)) {
                let _ = views.remove(i);
            }
        }
        self.device.views.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether it is read from the origin; if so, the areas.
type PerBio = [u64; 4];

impl Image {
    /// Whether the image can still be read.
    fn live(&self) -> bool {
        self.device.images_lost() == self.images_lost
    }

    /// How many of `sectors` sectors from `offset` lie in one piece, and where that begins: the
    /// slot and the sector, or `None` for the origin.
    fn piece(&self, offset: u64, sectors: u32) -> (u32, Option<u64>) {
        let first = offset >> BLOCK_SECTORS_SHIFT;
        let within = (offset % u64::from(BLOCK_SECTORS)) as u32;
        let slots = self.device.slots.lock();
        let g = &self.device.generations;
        // In this order: `newest` is at least that of `coming`.
        let coming = self.device.coming();
        let newest = self.device.newest();
        // An entry may be in the table before its data is on the region. Of the newest snapshot's,
        // the bitmap says so; what is staged for the coming one is not part of the chain yet; all
        // older ones are whole. The origin still has what is not preserved.
        let find = |block| {
            let (snapshot, slot) = slots.lookup_to_read(self.id, block)?;
            let whole = snapshot < newest || g.preserved().test(block);
            (snapshot < coming && whole).then_some(slot)
        };
        let start = find(first);
        let mut length = BLOCK_SECTORS.saturating_sub(within);
        let mut block = first;
        while length < sectors {
            block = block.saturating_add(1);
            let next = block.saturating_sub(first) as u32;
            let same = match (start, find(block)) {
                (None, None) => true,
                (Some(a), Some(b)) => {
                    a.checked_add(next) == Some(b) && Layout::contiguous(a, next.saturating_add(1))
                }
                _ => false,
            };
            if !same {
                break;
            }
            length = length.saturating_add(BLOCK_SECTORS);
        }
        let sector = start.map(|slot| {
            self.device
                .layout()
                .slot_block(slot)
                .saturating_mul(BLOCK_SECTORS.into())
                .saturating_add(within.into())
        });
        (length.min(sectors), sector)
    }
}

/// The first area and the number of areas of a run of sectors.
fn areas_of_sectors(offset: u64, sectors: u32) -> (u64, u64) {
    let (first, count) = blocks_touched(offset, sectors);
    areas_of(first, count)
}

impl dm::Target for Image {
    type PerBio = PerBio;
    const NAME: &'static CStr = c"presnap-image";
    const VERSION: [u32; 3] = [1, 0, 0];
    const READ_ONLY: bool = true;

    fn construct(ctor: &mut Constructor<'_>, args: Args<'_>) -> Result<KBox<Self>> {
        if args.len() != 2 {
            ctor.error(c"requires 2 arguments: <presnap device> <snapshot id>");
            return Err(EINVAL);
        }
        let id = args.get(1).and_then(parse_number).and_then(|n| u32::try_from(n).ok());
        let Some(id) = id.filter(|&id| id != 0) else {
            refuse(ctor, args, 1..2, c"Invalid snapshot id");
            return Err(EINVAL);
        };
        // Not opened: that would claim it, and it may be mounted. What a view needs to outlive it
        // are origin and region.
        let presnap = ctor.device_number(args, 0).inspect_err(|_| {
            refuse(ctor, args, 0..1, c"Cannot get presnap device");
        })?;
        let Some(device) = registry::find(presnap) else {
            refuse(ctor, args, 0..1, c"Not a presnap device");
            return Err(ENODEV);
        };
        let sectors = ctor.len();
        // Held before it is looked for, so that it cannot be deleted in between.
        if !device.control.lock().hold(id, Holder::View) {
            ctor.error(c"The snapshot is being deleted, or too many are held");
            return Err(EBUSY);
        }
        let held = Held { device, id };
        let device = &held.device;
        // Before its scope: that of one that is lost is read after that.
        let images_lost = device.images_lost();
        let record = device.sealed(id).map(|r| (r.scope, r.image_sectors(device.origin_sectors)));
        match record {
            // The origin may have grown since.
            Some((Scope::Image, length)) if sectors > length => {
                ctor.error(c"The image is smaller than the target");
                return Err(EINVAL);
            }
            Some((Scope::Image, _)) => {}
            Some((Scope::Delta, _)) => {
                refuse(ctor, args, 1..2, c"The snapshot has scope delta: there is no image of it");
                return Err(EINVAL);
            }
            None => {
                refuse(ctor, args, 1..2, c"There is no such snapshot");
                return Err(ENOENT);
            }
        }
        let origin = ctor.device_by_number(device.origin.number(), false).inspect_err(|_| {
            ctor.error(c"Cannot get origin device");
        })?;
        let region = ctor.device_by_number(device.region.number(), false).inspect_err(|_| {
            ctor.error(c"Cannot get region device");
        })?;
        let device = device.clone();
        let md = Arc::new(ctor.mapped_device(), GFP_KERNEL)?;
        device.view_events.lock().push(md.clone(), GFP_KERNEL)?;
        // Counted before the first read: a writer that does not see the view finds its reads.
        device.views.fetch_add(1, Ordering::SeqCst);
        let views = Counted { device: device.clone(), md };
        // Whoever closed the device before that had not seen the view.
        if !registry::find(presnap).is_some_and(|found| Arc::ptr_eq(&found, &device)) {
            ctor.error(c"The presnap device was closed");
            return Err(ENODEV);
        }
        Ok(KBox::new(
            Self {
                device,
                id,
                presnap,
                _views: views,
                _held: held,
                origin,
                region,
                sectors,
                images_lost,
            },
            GFP_KERNEL,
        )?)
    }

    fn map(&self, mut bio: MapBio) -> Disposition {
        let wanted = bio.bio().sectors().min(LONGEST_SECTORS);
        if bio.bio().op() != Op::Read || wanted == 0 || !self.live() {
            return Disposition::Failed(bio.into_bio());
        }
        let offset = bio.offset();
        let areas = areas_of_sectors(offset, wanted);
        self.device.view_reads.begin(areas.0, areas.1);
        // Pairs with the fence of the writers: either we see that the block is preserved, or they
        // that it is being read.
        fence(Ordering::SeqCst);
        let (length, sector) = self.piece(offset, wanted);
        let kept = areas_of_sectors(offset, length);
        let from_origin = sector.is_none();
        let done = if from_origin { kept.1 } else { 0 };
        self.device.view_reads.end(areas.0.saturating_add(done), areas.1.saturating_sub(done));
        bio.accept_partial(length);
        let mut bio = bio.into_bio();
        bio.store::<PerBio>([from_origin.into(), kept.0, kept.1, 0]);
        match sector {
            Some(sector) => bio.remap(&self.region.block(), sector),
            None => bio.remap(&self.origin.block(), offset),
        }
        Disposition::Remapped(bio)
    }

    fn end_io(&self, bio: &EndedBio, status: Status, _mirror: Option<Status>) -> Status {
        let [from_origin, area, areas, _] = bio.load::<PerBio>();
        if from_origin != 0 {
            self.device.view_reads.end(area, areas);
            self.device.view_read_ended();
        }
        status
    }

    fn status(&self, kind: StatusKind, out: &mut Text<'_>) {
        let _ = match kind {
            StatusKind::Info => write!(out, "{}", if self.live() { "ro" } else { "Invalid" }),
            StatusKind::Table => write!(out, "{} {}", self.presnap, self.id),
            StatusKind::Ima => begin_measurement::<Self>(out).and_then(|()| {
                let valid = if self.live() { 'y' } else { 'n' };
                write!(out, ",presnap_name={},id={},valid={valid};", self.presnap, self.id)
            }),
        };
    }

    fn devices(&self, f: &mut dyn FnMut(&dm::Device, u64, u64) -> i32) -> i32 {
        f(&self.origin, 0, self.sectors)
    }
}
