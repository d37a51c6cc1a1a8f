//! What the compiler refuses: a double release, a use after a release, memory that outlives its owner.

#[test]
fn misuse_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
