//! `kube-authn`.
fn main() {}
