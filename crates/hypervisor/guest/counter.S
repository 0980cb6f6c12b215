# The demo guest: counts onto its disk and its serial port, ten times a second.
#
# A BIOS loads these 512 bytes at 0x7c00. The record is the one that image.rs
# describes; counter N goes to LBA 1 + (N & 1), so that a torn write never
# loses the one before it. The power button (ACPI, polled) turns it off, after the
# time that sector 3 gives. Three keys make it fail or end from inside, for tests:
# h hangs it, p makes it panic (the panic device), s shuts it down.
#
# Assembled by `as --32` and `ld -m elf_i386 -Ttext 0x7c00 --oformat binary`;
# a test compares the result with counter.bin beside this file.

        .code16
        .set    RECORD, 0x7e00          # one sector behind this one
        .set    SUM, RECORD + 508
        .set    COM1, 0x3f8
        .set    PM1_STATUS, 0x600       # where SeaBIOS puts the ACPI registers, pc and q35
        .set    PM1_ENABLE, 0x602
        .set    PM1_CONTROL, 0x604
        .set    POWER_BUTTON, 0x100
        .set    PANIC_DEVICE, 0x505

        .globl  _start
_start: ljmp    $0, $start
start:  cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        sti
        cld
        movb    %dl, drive
        movw    $PM1_ENABLE, %dx
        movw    $POWER_BUTTON, %ax
        outw    %ax, %dx

        # Go on from the highest valid counter. A read that fails is tried
        # again: starting at zero would look like lost writes.
        xorl    %ebp, %ebp
        movb    $1, lba
load:   movb    $0x42, %ah
        call    disk
        jc      load
        call    sum
        cmpl    SUM, %ebx
        jne     next
        cmpl    $0x4f43534d, RECORD     # "MSCO"
        jne     next
        cmpl    %ebp, RECORD + 8
        jbe     next
        movl    RECORD + 8, %ebp
next:   incb    lba
        cmpb    $2, lba
        jbe     load

        # lba is 3 now: how long a shutdown takes, if somebody has written that.
times:  movb    $0x42, %ah
        call    disk
        jc      times
        call    sum
        cmpl    SUM, %ebx
        jne     count
        cmpl    $0x5547534d, RECORD     # "MSGU"
        jne     count
        movl    RECORD + 12, %eax
        movl    %eax, left

count:  incl    %ebp
        movw    $RECORD, %di
        movw    $128, %cx
        xorl    %eax, %eax
        rep stosl
        movl    $0x4f43534d, RECORD     # "MSCO"
        movl    $0x31544e55, RECORD + 4 # "UNT1"
        movl    %ebp, RECORD + 8
        call    sum
        movl    %ebx, SUM
        movw    %bp, %ax
        andb    $1, %al
        incb    %al
        movb    %al, lba
store:  movb    $0x43, %ah
        xorb    %al, %al
        call    disk
        jc      store

        # "count " and eight hexadecimal digits, on a line.
        movw    $text, %si
1:      lodsb
        testb   %al, %al
        jz      2f
        call    putc
        jmp     1b
2:      movl    %ebp, %ebx
        movw    $8, %cx
3:      roll    $4, %ebx
        movb    %bl, %al
        andb    $15, %al
        cmpb    $10, %al
        sbbb    $0x69, %al              # the classic: 0..15 to '0'..'9', 'A'..'F'
        das
        call    putc
        loop    3b
        movb    $13, %al
        call    putc
        movb    $10, %al
        call    putc

        movb    $1, %ah                 # is there a key?
        int     $0x16
        jz      button
        xorb    %ah, %ah
        int     $0x16
        cmpb    $'h', %al
        je      hang
        cmpb    $'p', %al
        je      panic
        cmpb    $'s', %al
        jne     button
        movb    $1, ending
button: movw    $PM1_STATUS, %dx        # says so until somebody takes it back
        inw     %dx, %ax
        testb   $1, %ah
        jnz     1f
        cmpb    $0, ending
        je      wait
1:      subl    $100, left              # "never" lasts for years
        jb      off
wait:   movb    $0x86, %ah              # wait 100 000 microseconds
        movw    $1, %cx
        movw    $0x86a0, %dx
        int     $0x15
        jmp     count

off:    movw    $PM1_CONTROL, %dx
        movw    $0x2000, %ax            # SLP_EN, type 0: soft off
        outw    %ax, %dx
        jmp     hang
panic:  movw    $PANIC_DEVICE, %dx
        movb    $1, %al
        outb    %al, %dx
hang:   cli
1:      hlt
        jmp     1b

# Transfers the record from or to the sector `lba`; ah is 0x42 (read) or 0x43 (write).
disk:   pushl   %ebp
        movb    drive, %dl
        movw    $packet, %si
        int     $0x13
        popl    %ebp
        ret

# The checksum of the record, in ebx.
sum:    movl    $0x4d41494e, %ebx
        movw    $RECORD, %si
        movw    $127, %cx
1:      lodsl
        roll    $5, %ebx
        addl    %eax, %ebx
        loop    1b
        ret

putc:   pushw   %ax
        movw    $COM1 + 5, %dx
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        popw    %ax
        movw    $COM1, %dx
        outb    %al, %dx
        ret

text:   .asciz  "count "
drive:  .byte   0
ending: .byte   0
        .balign 4
left:   .long   0                       # milliseconds from the request to the end
packet: .byte   16, 0
        .word   1
        .word   RECORD, 0
lba:    .long   0, 0

        .org    510
        .word   0xaa55
