import CLibNFTNL
import Glibc
import NetworkTypes

/// Rules and maps in libnftnl's terms.
extension RuleSpec {
  static func withEmptyRule<Result>(
    chain: String, family: IPFamily, _ body: (OpaquePointer) -> Result
  ) -> Result? {
    guard let rule = nftnl_rule_alloc() else { return nil }
    defer { nftnl_rule_free(rule) }
    nftnl_rule_set_str(rule, UInt16(NFTNL_RULE_TABLE.rawValue), Layout.tableName)
    nftnl_rule_set_str(rule, UInt16(NFTNL_RULE_CHAIN.rawValue), chain)
    nftnl_rule_set_u32(rule, UInt16(NFTNL_RULE_FAMILY.rawValue), family.nfproto)
    return body(rule)
  }

  @discardableResult
  func withRule<Result>(chain: String, family: IPFamily, _ body: (OpaquePointer) -> Result) -> Result? {
    Self.withEmptyRule(chain: chain, family: family) { rule in
      for expression in expressions { expression.add(to: rule) }
      if let buffer = nftnl_udata_buf_alloc(256) {
        nftnl_udata_put_strz(buffer, 0, comment)  // NFTNL_UDATA_RULE_COMMENT
        nftnl_rule_set_data(
          rule, UInt16(NFTNL_RULE_USERDATA.rawValue), nftnl_udata_buf_data(buffer), nftnl_udata_buf_len(buffer))
        nftnl_udata_buf_free(buffer)
      }
      return body(rule)
    }
  }

  /// The rule in libnftnl's words, to compare with one read back. Counters count, so their values do not.
  func text(chain: String, family: IPFamily) -> String {
    withRule(chain: chain, family: family) { Self.text(of: $0) } ?? ""
  }

  static func text(of rule: OpaquePointer) -> String {
    var buffer = [CChar](repeating: 0, count: 16384)
    nftnl_rule_unset(rule, UInt16(NFTNL_RULE_HANDLE.rawValue))
    nftnl_rule_unset(rule, UInt16(NFTNL_RULE_POSITION.rawValue))
    nftnl_rule_snprintf(&buffer, buffer.count, rule, UInt32(NFTNL_OUTPUT_DEFAULT.rawValue), 0)
    let text = String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    return text.split(separator: "\n").map { line in
      guard let counter = line.firstRange(of: "[ counter pkts") else { return String(line) }
      return line[..<counter.lowerBound] + "[ counter ]"
    }.joined(separator: "\n")
  }
}

extension Expression {
  fileprivate func add(to rule: OpaquePointer) {
    guard let expression = nftnl_expr_alloc(kernelName) else { return }
    fill(expression)
    nftnl_rule_add_expr(rule, expression)
  }

  private var kernelName: String {
    switch self {
    case .payload: "payload"
    case .meta, .setMeta: "meta"
    case .conntrack: "ct"
    case .lookup, .verdictLookup: "lookup"
    case .immediate, .verdict: "immediate"
    case .compare: "cmp"
    case .and, .replaceBits: "bitwise"
    case .setConntrackMark: "ct"
    case .log: "log"
    case .random: "numgen"
    case .hash: "hash"
    case .destinationNAT, .sourceNAT: "nat"
    case .masquerade: "masq"
    case .addElement, .updateElement, .deleteElement: "dynset"
    case .counter: "counter"
    case .reject, .resetTCP: "reject"
    }
  }

  private func fill(_ expression: OpaquePointer) {
    func number(_ attribute: Int, _ value: UInt32) { nftnl_expr_set_u32(expression, UInt16(attribute), value) }
    func bytes(_ attribute: Int, _ value: [UInt8]) {
      nftnl_expr_set(expression, UInt16(attribute), value, UInt32(value.count))
    }
    func dynset(_ operation: UInt32, _ map: MapName, _ key: Register, _ data: Register, _ timeout: UInt64) {
      nftnl_expr_set_str(expression, UInt16(NFTNL_EXPR_DYNSET_SET_NAME), map.rawValue)
      number(NFTNL_EXPR_DYNSET_OP, operation)
      number(NFTNL_EXPR_DYNSET_SREG_KEY, key.kernelNumber)
      number(NFTNL_EXPR_DYNSET_SREG_DATA, data.kernelNumber)
      // Zero too: the kernel always tells it back.
      nftnl_expr_set_u64(expression, UInt16(NFTNL_EXPR_DYNSET_TIMEOUT), timeout)
    }
    func bitwise(_ register: Register, _ mask: UInt32, _ bits: UInt32) {
      number(NFTNL_EXPR_BITWISE_SREG, register.kernelNumber)
      number(NFTNL_EXPR_BITWISE_DREG, register.kernelNumber)
      number(NFTNL_EXPR_BITWISE_LEN, 4)
      bytes(NFTNL_EXPR_BITWISE_MASK, withUnsafeBytes(of: mask) { Array($0) })
      bytes(NFTNL_EXPR_BITWISE_XOR, withUnsafeBytes(of: bits) { Array($0) })
    }
    switch self {
    case .payload(let base, let offset, let length, let to):
      number(NFTNL_EXPR_PAYLOAD_BASE, base.rawValue)
      number(NFTNL_EXPR_PAYLOAD_OFFSET, offset)
      number(NFTNL_EXPR_PAYLOAD_LEN, length)
      number(NFTNL_EXPR_PAYLOAD_DREG, to.kernelNumber)
    case .meta(let key, let to):
      number(NFTNL_EXPR_META_KEY, key.rawValue)
      number(NFTNL_EXPR_META_DREG, to.kernelNumber)
    case .setMeta(let key, let from):
      number(NFTNL_EXPR_META_KEY, key.rawValue)
      number(NFTNL_EXPR_META_SREG, from.kernelNumber)
    case .conntrack(let key, let original, let to):
      number(NFTNL_EXPR_CT_KEY, key.rawValue)
      number(NFTNL_EXPR_CT_DREG, to.kernelNumber)
      if original { nftnl_expr_set_u8(expression, UInt16(NFTNL_EXPR_CT_DIR), 0) }
    case .lookup(let map, let key, let to, let inverted):
      nftnl_expr_set_str(expression, UInt16(NFTNL_EXPR_LOOKUP_SET), map.rawValue)
      number(NFTNL_EXPR_LOOKUP_SREG, key.kernelNumber)
      if let to { number(NFTNL_EXPR_LOOKUP_DREG, to.kernelNumber) }
      number(NFTNL_EXPR_LOOKUP_FLAGS, inverted ? 1 : 0)
    case .verdictLookup(let map, let key):
      nftnl_expr_set_str(expression, UInt16(NFTNL_EXPR_LOOKUP_SET), map.rawValue)
      number(NFTNL_EXPR_LOOKUP_SREG, key.kernelNumber)
      number(NFTNL_EXPR_LOOKUP_DREG, 0)
      number(NFTNL_EXPR_LOOKUP_FLAGS, 0)
    case .immediate(let value, let to):
      number(NFTNL_EXPR_IMM_DREG, to.kernelNumber)
      bytes(NFTNL_EXPR_IMM_DATA, value)
    case .verdict(let verdict):
      number(NFTNL_EXPR_IMM_DREG, 0)
      if let chain = verdict.chain { nftnl_expr_set_str(expression, UInt16(NFTNL_EXPR_IMM_CHAIN), chain) }
      number(NFTNL_EXPR_IMM_VERDICT, UInt32(bitPattern: verdict.code))
    case .compare(let register, let equal, let value):
      number(NFTNL_EXPR_CMP_SREG, register.kernelNumber)
      number(NFTNL_EXPR_CMP_OP, equal ? 0 : 1)
      bytes(NFTNL_EXPR_CMP_DATA, value)
    case .and(let register, let mask): bitwise(register, mask, 0)
    case .replaceBits(let register, let mask, let bits): bitwise(register, mask, bits)
    case .setConntrackMark(let from):
      number(NFTNL_EXPR_CT_KEY, ConntrackKey.mark.rawValue)
      number(NFTNL_EXPR_CT_SREG, from.kernelNumber)
    case .log(let prefix):
      nftnl_expr_set_u16(expression, UInt16(NFTNL_EXPR_LOG_GROUP), Layout.logGroup)
      nftnl_expr_set_str(expression, UInt16(NFTNL_EXPR_LOG_PREFIX), prefix)
    case .random(let modulus, let to):
      number(NFTNL_EXPR_NG_DREG, to.kernelNumber)
      number(NFTNL_EXPR_NG_TYPE, 1)
      number(NFTNL_EXPR_NG_MODULUS, modulus)
      number(NFTNL_EXPR_NG_OFFSET, 0)
    case .hash(let from, let length, let modulus, let seed, let to):
      number(NFTNL_EXPR_HASH_SREG, from.kernelNumber)
      number(NFTNL_EXPR_HASH_DREG, to.kernelNumber)
      number(NFTNL_EXPR_HASH_LEN, length)
      number(NFTNL_EXPR_HASH_MODULUS, modulus)
      number(NFTNL_EXPR_HASH_SEED, seed)
      // Said, although 0 is what it is without: the kernel says it back, and its word is compared with ours.
      number(NFTNL_EXPR_HASH_OFFSET, 0)
      number(NFTNL_EXPR_HASH_TYPE, UInt32(NFT_HASH_JENKINS.rawValue))
    case .destinationNAT(let family, let address, let port):
      number(NFTNL_EXPR_NAT_TYPE, 1)
      number(NFTNL_EXPR_NAT_FAMILY, family.nfproto)
      number(NFTNL_EXPR_NAT_REG_ADDR_MIN, address.kernelNumber)
      number(NFTNL_EXPR_NAT_REG_ADDR_MAX, address.kernelNumber)
      number(NFTNL_EXPR_NAT_REG_PROTO_MIN, port.kernelNumber)
      number(NFTNL_EXPR_NAT_REG_PROTO_MAX, port.kernelNumber)
      number(NFTNL_EXPR_NAT_FLAGS, Self.addresses | Self.ports)
    case .sourceNAT(let family, let address):
      number(NFTNL_EXPR_NAT_TYPE, 0)
      number(NFTNL_EXPR_NAT_FAMILY, family.nfproto)
      number(NFTNL_EXPR_NAT_REG_ADDR_MIN, address.kernelNumber)
      number(NFTNL_EXPR_NAT_REG_ADDR_MAX, address.kernelNumber)
      number(NFTNL_EXPR_NAT_FLAGS, Self.addresses | Self.fullyRandom)
    case .masquerade: number(NFTNL_EXPR_MASQ_FLAGS, Self.fullyRandom)
    case .addElement(let map, let key, let data, let timeout): dynset(0, map, key, data, timeout)
    case .updateElement(let map, let key, let data, let timeout): dynset(1, map, key, data, timeout)
    case .deleteElement(let map, let key, let data): dynset(2, map, key, data, 0)
    case .counter: break
    case .resetTCP: number(NFTNL_EXPR_REJECT_TYPE, UInt32(NFT_REJECT_TCP_RST.rawValue))
    case .reject:
      number(NFTNL_EXPR_REJECT_TYPE, 0)
      // ICMP "port unreachable" is code 3, ICMPv6's is 4.
      nftnl_expr_set_u8(expression, UInt16(NFTNL_EXPR_REJECT_CODE), isIPv4 ? 3 : 4)
    }
  }

  private var isIPv4: Bool { if case .reject(.v4) = self { true } else { false } }
  /// NF_NAT_RANGE_*. The first two are implied by the registers, but the kernel tells them back.
  private static let addresses: UInt32 = 1 << 0
  private static let ports: UInt32 = 1 << 1
  private static let fullyRandom: UInt32 = 1 << 4
}

extension MapSpec {
  func fill(_ set: OpaquePointer, family: IPFamily, id: UInt32) {
    func number(_ attribute: nftnl_set_attr, _ value: UInt32) {
      nftnl_set_set_u32(set, UInt16(attribute.rawValue), value)
    }
    nftnl_set_set_str(set, UInt16(NFTNL_SET_TABLE.rawValue), Layout.tableName)
    nftnl_set_set_str(set, UInt16(NFTNL_SET_NAME.rawValue), name.rawValue)
    number(NFTNL_SET_FAMILY, family.nfproto)
    number(NFTNL_SET_ID, id)
    number(NFTNL_SET_FLAGS, kernelFlags)
    number(NFTNL_SET_KEY_TYPE, keyDisplayType)
    number(NFTNL_SET_KEY_LEN, keyLength)
    switch value {
    case .none: break
    case .verdict: number(NFTNL_SET_DATA_TYPE, UInt32(NFT_DATA_VERDICT.rawValue))
    case .data(let length, let type):
      number(NFTNL_SET_DATA_TYPE, type)
      number(NFTNL_SET_DATA_LEN, length)
    }
    if sizeLimit > 0 { number(NFTNL_SET_DESC_SIZE, sizeLimit) }
    if let buffer = nftnl_udata_buf_alloc(64) {
      nftnl_udata_put_u32(buffer, 0, keyByteOrder)
      if case .data = value { nftnl_udata_put_u32(buffer, 1, dataByteOrder) }
      nftnl_set_set_data(
        set, UInt16(NFTNL_SET_USERDATA.rawValue), nftnl_udata_buf_data(buffer), nftnl_udata_buf_len(buffer))
      nftnl_udata_buf_free(buffer)
    }
  }

  var kernelFlags: UInt32 {
    var flags: UInt32 = 0
    if value != .none { flags |= UInt32(NFT_SET_MAP.rawValue) }
    if isInterval { flags |= UInt32(NFT_SET_INTERVAL.rawValue) }
    if isDynamic { flags |= UInt32(NFT_SET_TIMEOUT.rawValue) | UInt32(NFT_SET_EVAL.rawValue) }
    return flags
  }
}
