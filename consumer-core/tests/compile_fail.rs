//! What the compiler says of a handler with a mistake: one precise sentence for each.
//!
//! The expected texts are those of the toolchain the project is built with; `TRYBUILD=overwrite` writes them anew.
#![cfg(feature = "json")]

#[test]
fn mistakes_in_handlers_are_named() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
