import Glibc
import Testing

@testable import BPFLoader

/// Major and minor.
struct KernelRelease: Comparable, CustomStringConvertible {
  var major: Int
  var minor: Int

  static let current: KernelRelease = {
    var names = utsname()
    uname(&names)
    let release = withUnsafeBytes(of: names.release) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    let numbers = release.split { !$0.isNumber }.prefix(2).compactMap { Int($0) }
    return KernelRelease(major: numbers.first ?? 0, minor: numbers.last ?? 0)
  }()

  static func < (left: KernelRelease, right: KernelRelease) -> Bool {
    (left.major, left.minor) < (right.major, right.minor)
  }
  var description: String { "\(major).\(minor)" }
}

/// What is left out on old kernels must not be left out on others.
@Suite("Kernel releases") struct KernelReleaseTests {
  @Test(
    "since 6.1 nothing that is tried for is missing",
    .enabled(if: KernelRelease.current >= KernelRelease(major: 6, minor: 1), "the kernel is older"))
  func features() {
    #expect(KernelFeatures.probe() == KernelFeatures(socketErrors: true, coarseClock: true))
    #expect(PacketRunner.canForward)
  }
}
