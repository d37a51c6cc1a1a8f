//! The kernels of `alloc-cuda`'s GPU tests, done by the processor.

/// The sizes of a kernel's parameters in bytes, if this is one that the fake knows.
pub(crate) fn parameters(function: &str) -> Option<&'static [usize]> {
    match function {
        // to, words, value, cycles
        "fill_after_delay" => Some(&[8, 8, 4, 8]),
        // from, words, value, counter
        "count_mismatches" => Some(&[8, 8, 4, 8]),
        // Nothing: it breaks the context that it runs in.
        "trap" => Some(&[]),
        _ => None,
    }
}

/// The memory that a launch uses.
pub(crate) fn touched(function: &str, parameters: &[u64]) -> Vec<(u64, u64)> {
    if parameters.is_empty() {
        return Vec::new();
    }
    let range = (parameters[0], parameters[1] * 4);
    match function {
        "count_mismatches" => vec![range, (parameters[3], 8)],
        _ => vec![range],
    }
}

pub(crate) fn run(function: &str, parameters: &[u64]) {
    let [address, words, value, counter] = *parameters else {
        return;
    };
    let value = value as u32;
    // SAFETY: the books say that the range is memory of this library, and nothing else runs: the world is locked.
    let words = unsafe { std::slice::from_raw_parts_mut(address as *mut u32, words as usize) };
    match function {
        "fill_after_delay" => words.fill(value),
        "count_mismatches" => {
            let wrong = words.iter().filter(|word| **word != value).count() as u64;
            // SAFETY: as above.
            unsafe { *(counter as *mut u64) += wrong };
        }
        _ => {}
    }
}
