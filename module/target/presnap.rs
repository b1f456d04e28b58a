// SPDX-License-Identifier: GPL-2.0-only

//! The target `presnap`: `<origin> <region> [<#feature args> [<key> <value>]...]`.

use crate::device::Device;
use crate::registry::{self, User};
use crate::route::{PerBio, Route, LONGEST_SECTORS};
use crate::sysfs;
use crate::words::refuse;
use kernel::new_mutex;
use kernel::prelude::*;
use kernel::sync::{Arc, Mutex};
use presnap_abi::bio::{Op, Status};
use presnap_abi::dm::{
    self, Args, Constructor, Disposition, EndedBio, MapBio, MappedDevice, StatusKind, Text,
};
use presnap_abi::memory::NoIo;
use presnap_engine::region::LayoutError;
use presnap_engine::table::{parse_features, Features};

/// A line of a table. Fields are dropped in order: the devices last.
pub(crate) struct Target {
    files: Pin<KBox<Mutex<Option<sysfs::Tree>>>>,
    user: User,
    pub(crate) features: Features,
    pub(crate) md: Arc<MappedDevice>,
    pub(crate) origin: dm::Device,
    pub(crate) region: dm::Device,
    sectors: u64,
}

impl Target {
    /// The device behind it; none while the origin has to grow before the table is live.
    pub(crate) fn device(&self) -> Option<&Arc<Device>> {
        self.user.device()
    }
}

impl dm::Target for Target {
    type PerBio = PerBio;
    const NAME: &'static CStr = c"presnap";
    const VERSION: [u32; 3] = [1, 0, 0];

    fn construct(ctor: &mut Constructor<'_>, args: Args<'_>) -> Result<KBox<Self>> {
        if args.len() < 2 {
            ctor.error(c"requires 2 or more arguments: <origin> <region>");
            return Err(EINVAL);
        }
        let words = (2..args.len()).filter_map(|i| args.get(i));
        let features = match parse_features(words) {
            Ok(features) => features,
            Err(error) => {
                refuse(ctor, args, 2..args.len(), error);
                return Err(EINVAL);
            }
        };
        let sectors = ctor.len();
        if sectors % 8 != 0 {
            ctor.error(c"Length is not a multiple of the block size (8 sectors)");
            return Err(EINVAL);
        }
        let origin = ctor.device(args, 0, true).inspect_err(|_| {
            refuse(ctor, args, 0..1, c"Cannot get origin device");
        })?;
        let region = ctor.device(args, 1, true).inspect_err(|_| {
            refuse(ctor, args, 1..2, c"Cannot get region device");
        })?;
        if origin.block().number() == region.block().number() {
            ctor.error(c"Region device cannot be the same as origin device");
            return Err(EINVAL);
        }
        if origin.block().sectors() < sectors {
            ctor.error(c"Origin device is smaller than the target");
            return Err(EINVAL);
        }
        let md = Arc::new(ctor.mapped_device(), GFP_KERNEL)?;
        let user = registry::open(ctor, &origin, &region, sectors, &features, &md)?;
        let files = KBox::pin_init(new_mutex!(None, "presnap::files"), GFP_KERNEL)?;
        Ok(KBox::new(Self { files, user, features, md, origin, region, sectors }, GFP_KERNEL)?)
    }

    fn map(&self, mut bio: MapBio) -> Disposition {
        if bio.bio().sectors() > LONGEST_SECTORS && bio.bio().op() != Op::Read {
            bio.accept_partial(LONGEST_SECTORS);
        }
        let offset = bio.offset();
        let Some(device) = self.device() else { return Disposition::Failed(bio.into_bio()) };
        match device.route(bio.into_bio(), offset) {
            Route::Origin(bio) => Disposition::Remapped(bio),
            Route::Gate(bio) | Route::Guard(bio) | Route::View(bio) | Route::Intent(bio) => {
                device.hold(bio);
                Disposition::Kept
            }
        }
    }

    fn end_io(&self, bio: &EndedBio, status: Status, mirror: Option<Status>) -> Status {
        if let Some(device) = self.device() {
            device.ended(bio.load::<PerBio>(), status, mirror);
        }
        status
    }

    fn preresume(&self) -> Result {
        // The device is suspended: memory that is had by writing to it would be waited for in vain.
        let _no_io = NoIo::enter();
        self.user.preresume()
    }

    fn resume(&self) {
        // The device is still suspended: memory that is had by writing to it would be waited for in vain.
        let _no_io = NoIo::enter();
        let Some(device) = self.device() else { return };
        let mut files = self.files.lock();
        if files.is_none() {
            match sysfs::Tree::new(&self.md, device) {
                Ok(tree) => *files = Some(tree),
                Err(_) => pr_warn!("cannot make the files in sysfs\n"),
            }
        }
        self.user.resumed(&self.md);
        if let Err((why, _)) = device.grow() {
            self.md.with_name(|name| pr_warn!("{name}: the region does not grow: {why}\n"));
        }
        // Who waits for events looks at the status again: with another table it may say something else.
        self.md.raise_event();
    }

    fn postsuspend(&self) {
        // Another table may be swapped in now; it makes its own files.
        *self.files.lock() = None;
    }

    fn status(&self, kind: StatusKind, out: &mut Text<'_>) {
        // The text is bounded; what does not fit is cut, as everywhere in device-mapper.
        let _ = self.write_status(kind, out);
    }

    fn message(&self, args: Args<'_>, out: &mut Text<'_>) -> Result {
        self.handle_message(args, out)
    }

    fn devices(&self, f: &mut dyn FnMut(&dm::Device, u64, u64) -> i32) -> i32 {
        f(&self.origin, 0, self.sectors)
    }
}

/// The text for `ti->error` of a region that cannot be laid out.
pub(crate) fn layout_error(error: LayoutError) -> &'static CStr {
    match error {
        LayoutError::TooSmall => c"Region device is too small",
        LayoutError::TooLarge => c"Region device is too large",
    }
}
