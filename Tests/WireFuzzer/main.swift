// What an API server sends, as a hostile or broken one might: read by the decoders with libFuzzer's bytes.
//
//   wire-fuzzer --seeds CORPUS FOLDER   writes the bytes of tests, each behind what says how they are read
//   wire-fuzzer FOLDER... [-flags]      as any libFuzzer program
import Glibc
import KubernetesObjects

@testable import ClusterSource

/// How an input's bytes are read: its first byte, and the size of pieces: its second.
private struct Way {
  var kind: ObjectKind
  var format: WireFormat
  var isWatch: Bool

  static let all = ObjectKind.allCases.flatMap { kind in
    WireFormat.allCases.flatMap { format in [false, true].map { Way(kind: kind, format: format, isWatch: $0) } }
  }

  var fileName: String { "\(kind)\(isWatch ? "Watch" : "List").\(format == .protobuf ? "pb" : "json")" }

  func read(_ bytes: UnsafeBufferPointer<UInt8>, pieces: Int) throws(WireProblem) {
    let decoder = ObjectDecoder()
    var list = ListStream(kind, format)
    var watch = WatchStream(kind, format)
    var rest = bytes[...]
    while !rest.isEmpty {
      let piece = rest.prefix(pieces)
      rest = rest.dropFirst(pieces)
      if isWatch {
        for case .present(let tree) in try watch.append(piece) { _ = decoder.decode(tree, as: kind) }
      } else {
        for tree in try list.append(piece) { _ = decoder.decode(tree, as: kind) }
      }
    }
    if !isWatch { _ = try list.finish() }
  }
}

private let readInput: @convention(c) (UnsafePointer<UInt8>?, Int) -> CInt = { data, count in
  let bytes = UnsafeBufferPointer(start: data, count: count)
  guard count > 2 else { return 0 }
  let pieces = bytes[1] < 128 ? count : 1 + Int(bytes[1] - 128) * 3
  do throws(WireProblem) {
    try Way.all[Int(bytes[0]) % Way.all.count].read(UnsafeBufferPointer(rebasing: bytes[2...]), pieces: pieces)
  } catch {
    // What it says is tested elsewhere.
  }
  return 0
}

private func writeSeeds(from corpus: String, to folder: String) {
  for (number, way) in Way.all.enumerated() {
    guard let file = fopen("\(corpus)/\(way.fileName)", "r") else { fatalError("no \(way.fileName) in \(corpus)") }
    defer { fclose(file) }
    var bytes = [UInt8](repeating: 0, count: 1 << 20)
    bytes = [UInt8(number), 0] + bytes.prefix(fread(&bytes, 1, bytes.count, file))
    guard let seed = fopen("\(folder)/\(way.fileName)", "w") else { fatalError("\(folder) cannot be written to") }
    defer { fclose(seed) }
    fwrite(bytes, 1, bytes.count, seed)
  }
}

/// compiler-rt/include/fuzzer/FuzzerInterface.h.
@_silgen_name("LLVMFuzzerRunDriver")
private func runDriver(
  _ count: UnsafeMutablePointer<CInt>,
  _ arguments: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>>,
  _ read: @convention(c) (UnsafePointer<UInt8>?, Int) -> CInt
) -> CInt

if CommandLine.arguments.count == 4, CommandLine.arguments[1] == "--seeds" {
  writeSeeds(from: CommandLine.arguments[2], to: CommandLine.arguments[3])
  exit(0)
}
var argumentCount = CommandLine.argc
var arguments = CommandLine.unsafeArgv
exit(runDriver(&argumentCount, &arguments, readInput))
