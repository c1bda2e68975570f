import CLibBPF
import Glibc
import Netlink

/// Where at a device a program sees packets.
public enum DeviceHook: String, Sendable, Hashable, CaseIterable {
  /// What the node gets from the device.
  case ingress
  /// What the node sends by it.
  case egress
}

/// Programs at network devices. By pinned tcx links (Linux 6.6): they stay when we end, give way to a new generation in
/// place, and end with their device. Before 6.6 by the clsact queueing discipline, which the device itself keeps.
struct DeviceLinks {
  let pins: PinFolder
  private let hasLinks: Bool

  /// - Parameter hasLinks: whether to use tcx; nil: where this kernel knows it.
  init(pins: PinFolder, hasLinks: Bool? = nil) {
    (self.pins, self.hasLinks) = (pins, hasLinks ?? Self.kernelHasLinks)
    BPFObject.silenceLibrary
  }

  static let prefix = "tc-"

  static func pin(_ program: String, _ device: UInt32) -> String { "\(prefix)\(program)-\(device)" }

  /// Attaches a program, or puts it into the place of its predecessor.
  func attach(_ program: String, of object: BPFObject, to device: UInt32, _ hook: DeviceHook) throws(SystemError) {
    let descriptor = try object.descriptor(ofProgram: program)
    guard hasLinks else { return try attachByClassifier(descriptor, program, to: device, hook) }
    let pin = Self.pin(program, device)
    if let link = try pins.open(pin) {
      defer { close(link) }
      // Of a device that is gone it is empty; another device may have the number now.
      if bpf_link_update(link, descriptor, nil) == 0 { return }
    }
    var options = bpf_link_create_opts()
    options.sz = MemoryLayout<bpf_link_create_opts>.size
    // Before whatever others attached: what they let through would not be asked about.
    options.flags = 1 << 3  // BPF_F_BEFORE
    let link = bpf_link_create(descriptor, CInt(bitPattern: device), hook.type, &options)
    // It went while we looked: nothing comes through it any more.
    if link == -ENODEV { return }
    try check("attach \(program) to device", "\(device)") { link }
    defer { close(link) }
    try pins.removeLink(pin)
    try pins.pin(link, pin)
  }

  /// Whether the program is attached there and sees packets.
  func isAttached(_ program: String, to device: UInt32, _ hook: DeviceHook) throws(SystemError) -> Bool {
    guard hasLinks else {
      var (place, options) = (hook.classifier(device), Self.classifierOptions)
      return bpf_tc_query(&place, &options) == 0
    }
    var (ids, count) = ([UInt32](repeating: 0, count: 64), UInt32(64))
    let result = bpf_prog_query(CInt(bitPattern: device), hook.type, 0, nil, &ids, &count)
    if result == -ENODEV { return false }
    try check("ask about device", "\(device)") { result }
    guard let link = try pins.open(Self.pin(program, device)) else { return false }
    defer { close(link) }
    var info = bpf_link_info()
    var size = UInt32(MemoryLayout<bpf_link_info>.size)
    try check("ask about link", program) { bpf_obj_get_info_by_fd(link, &info, &size) }
    return ids.prefix(Int(count)).contains(info.prog_id)
  }

  /// Takes the program off, wherever it is.
  func detach(_ program: String, from device: UInt32, _ hook: DeviceHook) throws(SystemError) {
    try pins.removeLink(Self.pin(program, device))
    detachClassifier(from: device, hook)
  }

  func detachClassifier(from device: UInt32, _ hook: DeviceHook) {
    var (place, options) = (hook.classifier(device), Self.classifierOptions)
    // Nothing there is as good.
    _ = bpf_tc_detach(&place, &options)
  }

  /// Programs at devices that are gone, or are no longer ours.
  ///
  /// - Parameter present: every device that there is: a classifier has no pin to be found by.
  func removeOthers(than devices: Set<UInt32>, of present: Set<UInt32>) throws(SystemError) {
    if !hasLinks {
      for device in present.subtracting(devices) {
        for hook in DeviceHook.allCases { detachClassifier(from: device, hook) }
      }
    }
    for name in pins.names where name.hasPrefix(Self.prefix) {
      guard let device = name.split(separator: "-").last.flatMap({ UInt32($0) }), !devices.contains(device) else {
        continue
      }
      try pins.removeLink(name)
      for hook in DeviceHook.allCases { detachClassifier(from: device, hook) }
    }
  }

  // MARK: Before tcx

  /// Whether this kernel knows tcx; else it refuses to be asked about it, whatever the device.
  private static let kernelHasLinks: Bool = {
    var count: UInt32 = 0
    return bpf_prog_query(1, DeviceHook.ingress.type, 0, nil, nil, &count) != -EINVAL
  }()

  private func attachByClassifier(
    _ descriptor: CInt, _ program: String, to device: UInt32, _ hook: DeviceHook
  ) throws(SystemError) {
    var place = hook.classifier(device)
    // Both hooks share the discipline: the second finds it there.
    let made = bpf_tc_hook_create(&place)
    // It went while we looked, as above.
    if made == -ENODEV { return }
    if made != -EEXIST { try check("add clsact to device", "\(device)") { made } }
    var options = Self.classifierOptions
    options.prog_fd = descriptor
    options.flags = 1  // BPF_TC_F_REPLACE
    let attached = bpf_tc_attach(&place, &options)
    if attached == -ENODEV { return }
    try check("attach \(program) to device", "\(device)") { attached }
  }

  /// First of all filters, under a handle of ours.
  private static var classifierOptions: bpf_tc_opts {
    var options = bpf_tc_opts()
    options.sz = MemoryLayout<bpf_tc_opts>.bytes(through: \.priority)
    (options.handle, options.priority) = (0x510c, 1)
    return options
  }
}

extension DeviceHook {
  /// BPF_TCX_INGRESS and BPF_TCX_EGRESS, which Debian 12's headers do not have.
  fileprivate var type: bpf_attach_type { bpf_attach_type(rawValue: self == .ingress ? 46 : 47) }

  fileprivate func classifier(_ device: UInt32) -> bpf_tc_hook {
    var place = bpf_tc_hook()
    place.sz = MemoryLayout<bpf_tc_hook>.bytes(through: \.parent)
    place.ifindex = CInt(bitPattern: device)
    place.attach_point = self == .ingress ? BPF_TC_INGRESS : BPF_TC_EGRESS
    return place
  }
}

extension MemoryLayout {
  /// Without the padding behind the last member: libbpf refuses structures in which that is not zero, and Swift leaves
  /// there whatever it finds.
  fileprivate static func bytes(through last: KeyPath<T, UInt32>) -> Int {
    (offset(of: last) ?? 0) + MemoryLayout<UInt32>.size
  }
}
