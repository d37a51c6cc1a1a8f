//! The header and the library declare the same functions, fields and numbers.

use std::collections::BTreeSet;
use std::path::Path;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The names that follow `before` and are followed by something else than a letter, digit or underscore.
fn names(text: &str, before: &str) -> BTreeSet<String> {
    let name = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    text.split(before).skip(1).map(name).filter(|name| !name.is_empty()).collect()
}

/// The text without comments.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

#[test]
fn functions_are_the_same() {
    let sources = code(&(read("src/ffi/mod.rs") + &read("src/ffi/dlpack.rs") + &read("src/ffi/torch.rs")));
    let exported: BTreeSet<String> = sources
        .split("#[unsafe(no_mangle)]")
        .skip(1)
        .map(|item| names(&item[..item.find('{').unwrap()], "fn ").pop_first().unwrap())
        .collect();
    let header = code(&read("include/device_memory.h"));
    let calls = header.split('(').map(|before| before.rsplit([' ', '*', '\n']).next().unwrap().to_owned());
    let declared: BTreeSet<String> = calls.filter(|name| name.starts_with("devmem_")).collect();
    assert_eq!(exported, declared, "`cargo xtask header` makes the header again");
}

#[test]
fn fields_are_the_same_and_in_order() {
    let in_order = |text: &str, start: &str, mark: &str| -> Vec<String> {
        let body = &text[text.find(start).unwrap()..];
        let body = &body[..body.find('}').unwrap()];
        body.lines().filter_map(|line| line.trim().strip_prefix(mark)).map(field).collect()
    };
    fn field(rest: &str) -> String {
        rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    }
    let (header, report) = (code(&read("include/device_memory.h")), code(&read("src/report.rs")));
    let ours = in_order(&report, "pub struct Statistics {", "pub ");
    let ours: Vec<String> = ours.into_iter().filter(|name| name != "struct").collect();
    assert_eq!(in_order(&header, "struct devmem_statistics_t {", "uint64_t "), ours);
    assert!(ours.len() * 8 == size_of::<device_memory::Statistics>());
}

#[test]
fn numbers_are_the_same() {
    let header = read("include/device_memory.h");
    for line in [
        format!("#define DEVMEM_ABI_VERSION {}", device_memory::ffi::DEVMEM_ABI_VERSION),
        format!("#define DEVMEM_KIND_CPU {}", device_memory::ffi::DEVMEM_KIND_CPU),
        format!("#define DEVMEM_KIND_CUDA {}", device_memory::ffi::DEVMEM_KIND_CUDA),
        format!("#define DEVMEM_KIND_CUDA_PINNED {}", device_memory::ffi::DEVMEM_KIND_CUDA_PINNED),
        format!("DEVMEM_STATUS_OUT_OF_MEMORY = {},", device_memory::Status::OutOfMemory as i32),
        format!("DEVMEM_STATUS_DOUBLE_FREE = {},", device_memory::Status::DoubleFree as i32),
        format!("DEVMEM_STATUS_INTERNAL = {},", device_memory::Status::Internal as i32),
    ] {
        assert!(header.lines().any(|found| found.trim() == line), "{line}");
    }
}
