//! Who can use a device's mapped memory, and where it is mapped: a device that is let in later has to be let into every
//! view that there is.

use std::collections::BTreeMap;

use alloc_core::ProviderError;

/// The devices that can use the memory, and its views.
#[derive(Debug)]
pub(super) struct Access {
    /// The driver's numbers, the memory's own device first.
    devices: Vec<i32>,
    /// Bytes by address.
    views: BTreeMap<u64, u64>,
    /// What is mapped though it should not be, as it could neither be opened nor be unmapped. Nobody uses it.
    remains: BTreeMap<u64, u64>,
}

impl Access {
    pub(super) fn of(device: i32) -> Self {
        Self { devices: vec![device], views: BTreeMap::new(), remains: BTreeMap::new() }
    }

    pub(super) fn devices(&self) -> &[i32] {
        &self.devices
    }

    pub(super) fn includes(&self, device: i32) -> bool {
        self.devices.contains(&device)
    }

    pub(super) fn add_view(&mut self, address: u64, bytes: u64) {
        self.views.insert(address, bytes);
    }

    pub(super) fn remove_view(&mut self, address: u64) {
        self.views.remove(&address);
    }

    pub(super) fn add_remains(&mut self, address: u64, bytes: u64) {
        self.remains.insert(address, bytes);
    }

    /// Takes away by `unmap` what remains in a range, for the range to be used again.
    ///
    /// # Errors
    /// That of `unmap`. What it was told of remains then.
    pub(super) fn clear(
        &mut self,
        address: u64,
        bytes: u64,
        unmap: impl Fn(u64, u64) -> Result<(), ProviderError>,
    ) -> Result<(), ProviderError> {
        let end = address.saturating_add(bytes);
        // What begins before the range may reach into it.
        let overlaps = |(start, bytes): &(&u64, &u64)| **start + **bytes > address;
        while let Some((start, bytes)) = self.remains.range(..end).filter(overlaps).map(|(a, b)| (*a, *b)).next() {
            unmap(start, bytes)?;
            self.remains.remove(&start);
        }
        Ok(())
    }

    /// Lets another device in: into every view by `open`, which is told address, bytes and all devices.
    ///
    /// # Errors
    /// That of `open`. Views before may be open to the device then, and those to come are not.
    pub(super) fn open_views(
        &mut self,
        device: i32,
        open: impl Fn(u64, u64, &[i32]) -> Result<(), ProviderError>,
    ) -> Result<(), ProviderError> {
        self.devices.push(device);
        let opened = self.views.iter().try_for_each(|(address, bytes)| open(*address, *bytes, &self.devices));
        if opened.is_err() {
            self.devices.pop();
        }
        opened
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use alloc_core::{Device, ProviderErrorKind};

    use super::*;

    #[test]
    fn who_is_let_in_is_let_into_what_there_is() {
        let mut access = Access::of(4);
        access.add_view(100, 10);
        access.add_view(200, 20);
        access.add_view(300, 30);
        access.remove_view(200);
        let seen = RefCell::new(Vec::new());
        let open = |address, bytes, devices: &[i32]| {
            seen.borrow_mut().push((address, bytes, devices.to_vec()));
            Ok(())
        };
        access.open_views(7, open).unwrap();
        assert_eq!(seen.take(), [(100, 10, vec![4, 7]), (300, 30, vec![4, 7])]);
        assert!(access.includes(7));
    }

    #[test]
    fn what_remains_is_taken_away_where_it_is_in_the_way() {
        let mut access = Access::of(0);
        [(100, 10), (110, 30), (200, 20)].into_iter().for_each(|(address, bytes)| access.add_remains(address, bytes));
        let seen = RefCell::new(Vec::new());
        let unmap = |address, bytes| {
            seen.borrow_mut().push((address, bytes));
            Ok(())
        };
        access.clear(120, 80, unmap).unwrap();
        assert_eq!(seen.take(), [(110, 30)]);
        access.clear(0, 300, unmap).unwrap();
        assert_eq!(seen.take(), [(100, 10), (200, 20)]);
        access.clear(0, 300, unmap).unwrap();
        assert_eq!(seen.take(), []);
    }

    #[test]
    fn who_could_not_be_let_in_everywhere_is_not_let_in() {
        let mut access = Access::of(0);
        access.add_view(100, 10);
        let refused = |_, _, _: &[i32]| {
            Err(ProviderError::new(Device::CPU, "cuMemSetAccess", ProviderErrorKind::InvalidArgument, "no"))
        };
        assert!(access.open_views(1, refused).is_err());
        assert_eq!(access.devices(), [0]);
    }
}
