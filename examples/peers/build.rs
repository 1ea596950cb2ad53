//! Generates tonic's client and server.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .bytes(".")
        .compile_protos(&["echo.proto"], &["."])
}
