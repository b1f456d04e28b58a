// SPDX-License-Identifier: GPL-2.0-only

//! `dmsetup status` and `dmsetup table`.

use crate::device::Health;
use crate::presnap::Target;
use core::fmt::Write;
use presnap_abi::dm::{self, StatusKind, Text};

impl Target {
    pub(crate) fn write_status(&self, kind: StatusKind, out: &mut Text<'_>) -> core::fmt::Result {
        match kind {
            StatusKind::Info => match self.device() {
                Some(device) => device.write_info(out),
                None => write!(out, "growing"),
            },
            StatusKind::Table => self.write_table(out),
            StatusKind::Ima => self.write_measurement(out),
        }
    }

    /// Loads again as it is.
    fn write_table(&self, out: &mut Text<'_>) -> core::fmt::Result {
        let f = &self.features;
        write!(out, "{} {}", self.origin.block().number(), self.region.block().number())?;
        if f.words() > 0 {
            write!(out, " {}", f.words())?;
        }
        if let Some(id) = f.origin_id {
            write!(out, " origin_id ")?;
            for byte in id {
                write!(out, "{byte:02x}")?;
            }
        }
        if let Some(scope) = f.scope {
            write!(out, " scope {}", scope.as_str())?;
        }
        if let Some(on_error) = f.on_error {
            write!(out, " on_error {}", on_error.as_str())?;
        }
        Ok(())
    }

    fn write_measurement(&self, out: &mut Text<'_>) -> core::fmt::Result {
        begin_measurement::<Self>(out)?;
        let (origin, region) = (self.origin.block().number(), self.region.block().number());
        write!(out, ",origin_name={origin},region_name={region}")?;
        if let Some(scope) = self.features.scope {
            write!(out, ",scope={}", scope.as_str())?;
        }
        if let Some(on_error) = self.features.on_error {
            write!(out, ",on_error={}", on_error.as_str())?;
        }
        let failed = self.device().is_some_and(|d| d.health() == Health::Invalid);
        let valid = if failed { 'n' } else { 'y' };
        write!(out, ",valid={valid};")
    }
}

/// What every target's measurement by IMA begins with.
pub(crate) fn begin_measurement<T: dm::Target>(out: &mut Text<'_>) -> core::fmt::Result {
    let (name, [major, minor, patch]) = (T::NAME.to_str().unwrap_or("presnap"), T::VERSION);
    write!(out, "target_name={name},target_version={major}.{minor}.{patch}")
}
