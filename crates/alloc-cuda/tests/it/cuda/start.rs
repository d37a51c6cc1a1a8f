//! The driver's start: what there is, and clear errors where it is not. Each case needs a process of its own.

use std::process::Command;

use alloc_core::ProviderErrorKind;

use super::harness::{fake_library, on_gpu};

/// Runs one of the ignored tests below in a process of its own.
fn child(test: &str, variables: &[(&str, &str)]) {
    let library = fake_library();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("cuda::start::{test}"), "--ignored", "--nocapture"]);
    command.env("ALLOC_CUDA_DRIVER", library);
    command.envs(variables.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

fn error() -> alloc_core::ProviderError {
    assert!(!alloc_cuda::is_available());
    let error = alloc_cuda::device_count().unwrap_err();
    assert_eq!(error.kind, ProviderErrorKind::Unavailable);
    let global = alloc_cuda::global(0).unwrap_err();
    assert!(global.to_string().contains(&*error.name), "{global}");
    error
}

#[test]
fn a_missing_driver_is_named() {
    if !on_gpu() {
        child("without_driver", &[("ALLOC_CUDA_DRIVER", "/nonexistent/libcuda.so.1")]);
    }
}

#[test]
#[ignore = "run by `a_missing_driver_is_named`"]
fn without_driver() {
    let error = error();
    assert_eq!((error.call, error.code), ("cuInit", 100));
    assert!(error.name.contains("/nonexistent/libcuda.so.1"), "{error}");
    // What other users of the bindings see: no device, as from a driver without a card.
    // SAFETY: no preconditions.
    assert_eq!(unsafe { cust::sys::cuInit(0) } as i32, 100);
}

#[test]
fn a_driver_without_devices_is_told_from_a_missing_one() {
    if !on_gpu() {
        child("without_device", &[("FAKE_CUDA_DEVICES", "0")]);
    }
}

#[test]
#[ignore = "run by `a_driver_without_devices_is_told_from_a_missing_one`"]
fn without_device() {
    let error = error();
    assert_eq!((error.call, error.code, &*error.name), ("cuInit", 100, "CUDA_ERROR_NO_DEVICE"));
}

#[test]
fn an_old_driver_is_refused_with_both_versions() {
    if !on_gpu() {
        child("with_old_driver", &[("FAKE_CUDA_VERSION", "10020")]);
    }
}

#[test]
#[ignore = "run by `an_old_driver_is_refused_with_both_versions`"]
fn with_old_driver() {
    let error = error();
    assert_eq!((error.call, error.code), ("cuDriverGetVersion", 10020));
    assert!(error.name.contains("10.2") && error.name.contains("11.2"), "{error}");
}

#[test]
fn a_driver_that_was_not_ready_is_asked_again() {
    if !on_gpu() {
        child("with_driver_that_is_not_ready", &[]);
    }
}

#[test]
#[ignore = "run by `a_driver_that_was_not_ready_is_asked_again`"]
fn with_driver_that_is_not_ready() {
    let Some(fake) = super::harness::fake() else { return };
    // The last of them: as many processes use MPS as it can serve.
    let codes = [802, 2, 809];
    codes.iter().for_each(|code| fake.fail("cuInit", 0, *code));
    for code in codes {
        assert_eq!(alloc_cuda::device_count().unwrap_err().code, i64::from(code));
    }
    assert_eq!(alloc_cuda::device_count(), Ok(4));
    alloc_cuda::global(0).unwrap();
    assert_eq!(fake.calls("cuInit"), 4, "once it has started it is not started again");
}

#[test]
fn devices_are_counted_and_described() {
    let Some(_fake) = super::harness::fake() else { return };
    assert_eq!(alloc_cuda::device_count().unwrap(), 4);
    assert_eq!(alloc_cuda::driver_version().unwrap(), (12, 8));
    let info = alloc_cuda::device_info(0).unwrap();
    assert_eq!((info.total_memory, info.compute_capability.0), (1 << 30, 9));
    assert!(info.virtual_memory_management && info.memory_pools);
    assert!(!alloc_cuda::device_info(2).unwrap().virtual_memory_management);
    let error = alloc_cuda::device_info(4).unwrap_err();
    assert_eq!((error.kind, error.device.ordinal()), (ProviderErrorKind::Unavailable, 4));
    assert_eq!(error.name, "CUDA_ERROR_INVALID_DEVICE");
}
