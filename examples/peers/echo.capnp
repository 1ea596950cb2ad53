@0xb8a4f1c6d2e95a37;
# The bench's service for Cap'n Proto. `src/echo_capnp.in` is made of this file and committed, so that the peers build without
# the schema compiler. To make it again, from this folder: unpack Debian's capnproto and libcapnp, and run
# `capnpc::CompilerCommand::new().file("echo.capnp").output_path("src").run()` (capnpc 0.27) with its `capnp` on PATH,
# then rename the outcome.

interface Echo {
  echo @0 (payload :Data) -> (payload :Data);
}
